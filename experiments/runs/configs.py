"""Which configs a command names: rows of the original report, and config files."""

import contextlib
import glob
import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from experiments.runs.rows import ROWS
from jaxcifar.config import Config, base_config, flatten, nearest_field
from jaxcifar.errors import UserError, choose
from jaxcifar.options import config_file, load, user_path, with_options


class Source(NamedTuple):
    """A config to train by, and where it came from."""

    name: str  # of the row, or the config file without .py; `varied` adds to it
    config: Config
    file: str | None = None  # as given; None for a row
    grid: tuple[str, ...] = ()  # the values by which it was varied: ("optim.l2=0.0001", …)


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
        part = str(user_path(part))
        matches = [part] if pathlib.Path(part).exists() else sorted(glob.glob(part, recursive=True))
        with contextlib.suppress(UserError):  # the name of one that comes with the package
            matches = matches or list(filter(os.path.exists, [str(config_file(part))]))
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
    sources = [Source(name, load(name)) for name in row_names]
    return sources + [Source(pathlib.Path(path).stem, load(path), path) for path in paths]


def varied(sources: list[Source], grid: Sequence[str]) -> list[Source]:
    """Returns each config with each combination of some values.

    Args:
      sources: the configs.
      grid: the values of each field: ["optim.l2=0,1e-4", …]. The names tell the combinations
        apart: "row9-l2-0", "row9-l2-0.0001".

    Raises:
      UserError: a field is unknown, has several numbers, or is given twice, or a value cannot be
        used.
    """
    known, seen = flatten(base_config()), set()
    for text in grid:
        field, _, values = text.removeprefix("config.").partition("=")
        if field not in known or not values:
            hint = "" if field in known else nearest_field(field)
            raise UserError(f"--grid is {text!r}; give a field and values, {_GRID}.{hint}")
        if field == "seed":
            raise UserError(f"--grid is {text!r}. Give --seeds={values} instead.")
        if isinstance(known[field], tuple):
            raise UserError(f"--grid is {text!r}, but {field} is a tuple. Write a config for each.")
        if field in seen:
            raise UserError(f"--grid has {field} twice. Give all values at once, {_GRID}.")
        seen.add(field)
        sources = [_with(source, field, value) for source in sources for value in values.split(",")]
    names = [source.name for source in sources]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--grid makes two configs of the name {twice[0]}. Give each value once.")
    return sources


_GRID = "such as --grid=optim.learning_rate=1e-3,3e-4"


def _with(source: Source, field: str, text: str) -> Source:
    config = with_options(source.config, [f"--config.{field}={text}"])
    number = flatten(config)[field]  # the same for "1e-3" and "0.001"
    value = str(number)
    if isinstance(number, float) and float(f"{number:g}") == number:
        value = f"{number:g}"
    if not re.fullmatch(r"[\w.+-]+", value):
        raise UserError(
            f"--grid has {field}={text}, but {value!r} cannot be part of a folder's name. Write a "
            "config for each value."
        )
    varying = f"{field}={value}"
    name = varied_name(source.name, [varying])
    return Source(name, config, source.file or source.name, (*source.grid, varying))


def varied_name(name: str, grid: Sequence[str]) -> str:
    """Returns the name of a config that is varied by values such as "optim.l2=0.0001"."""
    for varying in grid:
        field, _, value = varying.partition("=")
        group, _, last = field.rpartition(".")
        name += f"-{group if last == 'name' else last}-{value}"
    return name
