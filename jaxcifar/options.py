"""What a command line refers to: paths, config files, and the fields that options change."""

import argparse
import copy
import difflib
import json
import pathlib
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags
from ml_collections.config_dict import RequiredValueError

from jaxcifar.config import Config, base_config, check_type, flatten, meant_by, validate
from jaxcifar.errors import UserError, nearest, note, raise_temporary
from jaxcifar.files import read_json, write_shared

_HERE = pathlib.Path(__file__).parent
_INSTALLED = _HERE / "configs"
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _HERE.parent / "configs"  # of a checkout
ORIGIN = "origin.json"  # in a run's folder, or beside those of a config's seeds


class Parser(argparse.ArgumentParser):
    """A parser of a command's options, which says what is wrong with them in one line.

    argparse's own would print the usage first.
    """

    def __init__(self, prog: str, description: str | None = None, **settings: Any):
        layout = argparse.RawDescriptionHelpFormatter
        settings = {"formatter_class": layout, "allow_abbrev": False} | settings
        super().__init__(prog=prog, description=description, **settings)

    def error(self, message: str) -> NoReturn:
        said = f"{message[0].upper()}{message[1:]}".removesuffix(".")
        note(f"{said}. See {self.prog} --help.")
        sys.exit(2)


class BadPath(UserError, argparse.ArgumentTypeError):
    """A path that cannot be used. argparse prints it where `user_path` is an option's type."""


def user_path(text: str) -> pathlib.Path:
    """Returns the path that a user wrote, with "~" expanded, which no shell does after "=".

    Raises:
      BadPath: it is empty, there is no home folder, or it is a URL, such as that of a bucket.
    """
    if not text:
        raise BadPath("The path is empty.")
    if re.match(r"[a-z][a-z0-9]+://", text):
        raise BadPath(
            f"{text!r} is not a local path. Give one, and copy the files from or to the bucket."
        )
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise BadPath(f"{text!r}: {error} Set HOME, or give the full path.") from error


def config_file(name: str | pathlib.Path) -> pathlib.Path:
    """Returns the file that a config's name, such as "row9", stands for; a path stands for itself.

    Raises:
      UserError: the package has no config of that name.
    """
    given = pathlib.Path(name)
    if given.suffix or len(given.parts) > 1:
        return given
    known = [path.stem for path in CONFIGS.glob("*.py")]
    known.sort(key=lambda name: (name.rstrip("0123456789"), len(name), name))
    if str(given) not in known:
        if (given / "config.json").exists() or (given / "checkpoints").is_dir():
            return given  # a run, to be resumed
        raise UserError(
            f"There is no config {str(given)!r}.{nearest(str(given), known)} There are "
            f"{', '.join(known)}; for a file of your own, give its path, such as ./mine.py."
        )
    return CONFIGS / f"{given}.py"


def load(name: str | pathlib.Path) -> Config:
    """Returns what get_config() of a config file returns.

    A config file may call this to start from another: `config = load("row9")`.

    Args:
      name: of a config of the package, such as "row9"; or the path of a file.

    Raises:
      UserError: the file cannot be loaded, or does not return a valid config.
    """
    path = config_file(name)
    if (path / "config.json").is_file():
        raise UserError(
            f"{path} is the folder of a run, not a config. To resume it: jaxcifar train "
            f"{shlex.quote(str(path))}"
        )
    if not path.is_file():
        where = "" if path.is_absolute() else f" in {pathlib.Path.cwd()}"
        raise UserError(f"There is no config file {path}{where}.")
    if path.suffix != ".py":
        raise UserError(
            f"{path} is not a config file: those are Python (.py). To resume a run, give its "
            "folder: jaxcifar train runs/NAME"
        )
    module = {"__name__": f"config_file_{path.stem}", "__file__": str(path)}
    try:
        # Not by an import, which takes an old __pycache__ if the file is of the same second.
        exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), module)
        get_config: Any = module.get("get_config")
        config = get_config() if callable(get_config) else None
    except (Exception, SystemExit) as error:  # the file's code may raise anything
        raise_temporary(error, path)
        beside = path.parent / f"{getattr(error, 'name', None)}.py"
        what = f"{type(error).__name__}: {_reason(error)}"
        if isinstance(error, ModuleNotFoundError) and beside.exists():
            what += f" {beside} is not on Python's path: start with PYTHONPATH={path.parent}"
        elif isinstance(error, ModuleNotFoundError) and f"{error.name}.".startswith("configs."):
            what += " To start from a config of the package: jaxcifar.options.load('row9')"
        raise UserError(f"The config file {path} cannot be loaded: {what}") from error
    if not callable(get_config):
        raise UserError(f"The config file {path} has no function get_config().")
    if not isinstance(config, ConfigDict):
        kind = "None" if config is None else f"a {type(config).__name__}"
        raise UserError(
            f"get_config() of {path} returns {kind}, not a config. Start from "
            "jaxcifar.config.base_config(), and return it."
        )
    if isinstance(config, FrozenConfigDict):
        config = ConfigDict(config)  # options change it
    try:
        validate(config)
    except (UserError, RequiredValueError) as error:  # the latter of a placeholder
        raise UserError(f"{path}: {error}") from error
    return config


def write_origin(
    folder: pathlib.Path, file: str | pathlib.Path, config: Config, grid: Sequence[str] = ()
) -> None:
    """Writes what a run's config was before options changed it, if that is not what is there.

    Without it nothing could say later how the run was shortened, or which command made it.

    Args:
      folder: of the run, or the one that holds its config's seeds; created if necessary.
      file: the config file.
      config: what it returns, varied by `grid`.
      grid: the values by which a sweep varied it: ("optim.l2=0.0001", …).
    """
    path, file = folder / ORIGIN, pathlib.Path(file)
    # One that comes with the package has the same name on every machine.
    packaged = file.resolve().parent == CONFIGS.resolve()
    content = {"file": file.stem if packaged else str(file), "config": config.to_dict()}
    content |= {"grid": list(grid)} if grid else {}
    try:
        same = read_json(path) == json.loads(json.dumps(content))
    except (OSError, ValueError):
        same = False
    if not same:
        folder.mkdir(parents=True, exist_ok=True)
        write_shared(path, content)


def with_options(config: Config, options: Sequence[str]) -> Config:
    """Returns a copy of `config`, changed by options such as "--config.train.epochs=3".

    Raises:
      UserError: an option is unknown, or its value has the wrong type.
    """
    config = copy.deepcopy(config)  # which keeps references between fields
    # What is given twice counts the second time, but absl would join the values of a tuple.
    joined = [f"--config.{name}" for name, v in flatten(config).items() if isinstance(v, tuple)]
    given, options = iter(options), []
    for option in given:  # --config.optim.milestones 20,30
        value = next(given, None) if option in joined else None
        options.append(option if value is None else f"{option}={value}")
    last, kept = {option.partition("=")[0]: i for i, option in enumerate(options)}, []
    for i, option in enumerate(options):
        name, equals, _ = option.partition("=")
        field, bracket, _ = name.partition("[")
        if bracket and field.startswith("--config."):
            raise UserError(
                f"{field}[…] is a part of a field. Give the whole of it: {field}=VALUE,VALUE,…"
            )
        if not equals or name not in joined or last[name] == i:
            kept.append(option)
    values, argv = flags.FlagValues(), ["", *kept]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        known = flatten(config)
        for option in (option.lstrip("-") for option in options):
            name, _, value = option.removeprefix("config.").partition("=")
            if name in known and str(error).startswith(f"flag --{option}:"):  # a wrong type
                check_type(name, value, known[name])
        raise UserError(f"An option cannot be used: {_reason(error)}{hint(options)}") from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not an option. --help lists them all.")
    return values.config


def _reason(error: Exception) -> str:
    """The message of an error that absl or ml_collections raised for an option."""
    # ml_collections wraps a KeyError, which suggests the nearest name, in an AttributeError.
    if error.args and isinstance(error.args[0], KeyError):
        error = error.args[0]
    return str(error.args[0] if isinstance(error, KeyError) else error)


def hint(arguments: Iterable[str]) -> str:
    """Suggests the fields of a config that unknown command-line flags may have meant."""
    known, hints = flatten(base_config()), []
    for argument in arguments:
        name, equals, value = argument.lstrip("-").partition("=")
        if name.startswith("noconfig."):  # as absl writes it
            name = f"config.no{name.removeprefix('noconfig.')}"
        field = name.removeprefix("config.").replace("-", "_")
        if not argument.startswith("-") or (field in known and name == f"config.{field}"):
            continue
        if field in known:
            hints.append(f" Did you mean --config.{field}{equals}{value}?")
            continue
        if not equals and field.removeprefix("no") in known:  # as absl's own flags are unset
            hints.append(f" Did you mean --config.{field.removeprefix('no')}=False?")
            continue
        meant = meant_by(field)
        if not meant and name.startswith("config."):
            meant = next(iter(difflib.get_close_matches(field, known, n=1)), None)
        if meant:
            hints.append(f" Did you mean --config.{meant}{equals}{value}?")
    return "".join(hints)
