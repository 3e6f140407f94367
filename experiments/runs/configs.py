"""Which configs a command names: rows of the original report, and config files."""

import contextlib
import glob
import os
import pathlib
from typing import NamedTuple

from experiments.runs.rows import ROWS
from jaxcifar.config import Config
from jaxcifar.errors import UserError, choose
from jaxcifar.options import config_file, load, user_path


class Source(NamedTuple):
    """A config to train by, and where it came from."""

    name: str  # of the row, or the config file without .py
    config: Config
    file: str | None = None  # as given; None for a row


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
