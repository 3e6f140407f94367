"""What the values in the JSON files of runs must be, whoever wrote those files."""

import pathlib
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from jaxcifar.errors import UserError

Kind = Callable[[Any], bool]  # whether a value is of it


def anything(value: Any) -> bool:
    return True


def mapping(value: Any) -> bool:
    return isinstance(value, dict)


def text(value: Any) -> bool:
    return isinstance(value, str)


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def number(value: Any) -> bool:
    """Whether it is finite, and small enough for a float; also where it is an int."""
    return isinstance(value, int | float) and not flag(value) and abs(value) < 1e300


def count(value: Any) -> bool:
    return isinstance(value, int) and number(value) and value >= 0


def numbers(value: Any) -> bool:
    """Whether it is a list of numbers, some of which may not be finite."""
    return (
        isinstance(value, list) and bool(value) and all(isinstance(v, int | float) for v in value)
    )


def or_none(kind: Kind) -> Kind:
    return lambda value: value is None or kind(value)


def check_keys(path: pathlib.Path, content: Any, kinds: Mapping[str, Kind]) -> None:
    """Checks that a JSON object of a file has some keys, with values of their kinds.

    Raises:
      UserError: it has not.
    """
    missing = [key for key in kinds if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(
            f"{path} is from another version of jaxcifar, or damaged: {', '.join(missing)} missing."
            " Read it with that version, or move it away."
        )
    for key, kind in kinds.items():
        if not kind(content[key]):
            raise UserError(
                f"{path} is damaged: {key} is {reprlib.repr(content[key])}. Restore it from a "
                "copy, or move it away."
            )
