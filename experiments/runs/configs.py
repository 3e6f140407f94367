"""Which configs a command names: rows of the original report, config files, and options."""

import glob
import importlib.machinery
import importlib.util
import pathlib
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.runs.rows import ROWS
from jaxcifar.config import Config, validate
from jaxcifar.errors import UserError, choose, reason

FOLDER = pathlib.Path(__file__).parents[2] / "configs"


class Source(NamedTuple):
    """A config to train by, and where it came from."""

    name: str  # of the row, or the config file without .py
    config: Config
    file: str | None = None  # as given; None for a row


def row_config(name: str) -> Config:
    """Returns the config of a row of the original report, such as "row9" or "vgg2"."""
    return load(FOLDER / f"{name}.py")


def load(path: str | pathlib.Path) -> Config:
    """Returns what get_config() of a config file returns.

    Raises:
      UserError: the file cannot be loaded, or returns no config, or an impossible one.
    """
    name = pathlib.Path(path).stem
    loader = importlib.machinery.SourceFileLoader(f"config_file_{name}", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        config = get_config() if callable(get_config) else None
    except (Exception, SystemExit) as error:  # whatever the file's own code raises
        raise UserError(
            f"The config file {path} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not callable(get_config):
        raise UserError(f"The config file {path} has no function get_config().")
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() of {path} returns {_described(config)}, not a config. Start from "
            "jaxcifar.config.base_config(), and return it."
        )
    try:
        validate(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def _described(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def parse_rows(text: str) -> list[str]:
    """Returns the rows that "1-3,vgg2" or "vgg1-vgg8" names; a bare number is of Table 3.

    Raises:
      UserError: it names none, or one that the original report does not have.
    """
    rows: list[str] = []
    for part in text.split(","):
        ends = part.strip().split("-")
        table = ends[0].rstrip("0123456789") or "row"
        ends = [
            choose("A row in --rows", f"{table}{end.removeprefix(table)}", ROWS) for end in ends
        ]
        first, last = (int(end.removeprefix(table)) for end in (ends[0], ends[-1]))
        if len(ends) > 2 or first > last:
            raise UserError(f"--rows has {part!r}; give a row (9), or a range (1-12, vgg1-vgg8).")
        rows += [f"{table}{number}" for number in range(first, last + 1)]
    return list(dict.fromkeys(rows))


def parse_files(text: str) -> list[str]:
    """Returns the files that "configs/row9.py,mine/*.py" names, each once.

    Raises:
      UserError: a part names no file, or two files have one name.
    """
    files: dict[pathlib.Path, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        matches = [part] if pathlib.Path(part).exists() else sorted(glob.glob(part, recursive=True))
        if not matches:
            raise UserError(f"--configs has {part!r}, which matches no file.")
        for match in matches:
            files.setdefault(pathlib.Path(match).resolve(), match)
    if not files:
        raise UserError(f"--configs is {text!r}; give config files, such as configs/row9.py.")
    by_name: dict[str, str] = {}
    for file in files.values():
        other = by_name.setdefault(pathlib.Path(file).stem, file)
        if other != file:
            raise UserError(
                f"{other} and {file} would share the run folder {pathlib.Path(file).stem}. Rename "
                "one of them."
            )
    return list(files.values())


def named(rows: str | None, files: str | None) -> list[Source]:
    """Returns the configs that the options --rows and --configs name, rows first.

    Raises:
      UserError: neither is given, one is impossible, two share a name, or a file cannot be used.
    """
    if rows is None and files is None:
        raise UserError("Name what to train: --rows=1-12, --configs=configs/row9.py, or both.")
    row_names = parse_rows(rows) if rows is not None else []
    paths = parse_files(files) if files is not None else []
    for path in paths:
        if pathlib.Path(path).stem in row_names:
            raise UserError(
                f"{path} would share the run folder {pathlib.Path(path).stem} with the row of that "
                "name in --rows. Rename it, or leave one of them out."
            )
    sources = [Source(name, row_config(name)) for name in row_names]
    return sources + [Source(pathlib.Path(path).stem, load(path), path) for path in paths]


def with_options(config: Config, options: list[str]) -> Config:
    """Returns `config` changed by options such as "--config.train.epochs=3".

    Raises:
      UserError: an option is unknown, has a value of another type, or sets the seed.
    """
    values, argv = flags.FlagValues(), ["sweep", *options]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"An option cannot be used: {reason(error)}") from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not an option. --help lists them all.")
    if "seed" in values["config"].override_values:  # pyright: ignore
        raise UserError("--config.seed would be the same for all runs. Give --seeds instead.")
    return values.config
