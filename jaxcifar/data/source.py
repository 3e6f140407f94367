"""A place where a data set was found, and what its pixels and labels must be."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcifar.data.spec import Spec
from jaxcifar.errors import UserError


class Unlabelled(UserError):
    """The test images that were found have no labels."""


class Partial(UserError):
    """Only a part of a data set was found."""


class Read(NamedTuple):
    """The images and labels of one split, as a source has them.

    Attributes:
      images: [N, 32, 32, 3] uint8.
      labels: [N] int32.
      official: whether a published checksum matched.
    """

    images: np.ndarray
    labels: np.ndarray
    official: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
    """A place that holds a data set, or a part of one.

    Attributes:
      path: of the archive or folder.
      read: reads the split "train" or "test".
      missing: the files or folders that it lacks; () when it is complete.
    """

    path: pathlib.Path
    read: Callable[[str], Read]
    missing: Sequence[str] = ()


def damaged(spec: Spec, where: object, what: str) -> UserError:
    """Returns the error of a file that is not what it should be."""
    return UserError(f"{where} is damaged: {what}. Download {spec.title} again from {spec.page}.")


def check_labels(spec: Spec, labels: list[Any], where: object) -> np.ndarray:
    """Returns the labels as int32.

    Raises:
      UserError: one is not the number of a class.
    """
    last = len(spec.class_names) - 1
    for record, label in enumerate(labels):
        if not isinstance(label, int | np.integer) or not 0 <= label <= last:
            raise damaged(spec, where, f"record {record} has the label {label!r}, not 0 to {last}")
    return np.array(labels, np.int32)


def require_count(spec: Spec, where: object, split: str, found: int) -> None:
    """Checks that a split has as many images as the set's authors say.

    Raises:
      UserError: it has more or fewer.
    """
    if found != spec.count(split):
        raise UserError(
            f"{where} holds {found:,} {split} images, and {spec.title} has {spec.count(split):,}."
        )
