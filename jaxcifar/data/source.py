"""A place where a data set was found, and what its pixels and labels must be."""

import dataclasses
import pathlib
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcifar.data.spec import Spec
from jaxcifar.errors import UserError

PIXELS = 3 * 32 * 32


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
      empty: whether it lacks all of them.
    """

    path: pathlib.Path
    read: Callable[[str], Read]
    missing: Sequence[str] = ()
    empty: bool = False


def damaged(spec: Spec, where: object, what: str) -> UserError:
    """Returns the error of a file that is not what it should be."""
    return UserError(f"{where} is damaged: {what}. Download {spec.title} again from {spec.page}.")


def check(
    spec: Spec, count: int, pixels: np.ndarray, labels: list[Any], where: object
) -> tuple[np.ndarray, np.ndarray]:
    """Checks pixels [N, 3072], channel-planar, and N labels.

    Returns:
      Images [N, 32, 32, 3] in 0 … 255 and labels [N] int32.

    Raises:
      UserError: not `count` of either, a wrong type or a value out of range.
    """
    if pixels.shape != (count, PIXELS) or len(labels) != count:
        raise damaged(
            spec,
            where,
            f"it has pixels of shape {pixels.shape} and {len(labels):,} labels instead of "
            f"{(count, PIXELS)} and {count:,}",
        )
    if pixels.dtype.kind not in "iu":
        raise damaged(spec, where, f"its pixels are of type {pixels.dtype}, not whole numbers")
    lowest, highest = pixels.min(), pixels.max()
    if lowest < 0 or highest > 255:
        raise damaged(spec, where, f"its pixels are {lowest} to {highest}, not 0 to 255")
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, check_labels(spec, labels, where)


def check_labels(spec: Spec, labels: list[Any], where: object) -> np.ndarray:
    """Returns the labels as int32.

    Raises:
      UserError: one is not the number of a class.
    """
    last = len(spec.class_names) - 1
    for record, label in enumerate(labels):
        if not isinstance(label, int | np.integer) or not 0 <= label <= last:
            shown = reprlib.repr(label)  # of lists in lists, repr can fill the memory
            raise damaged(spec, where, f"record {record} has the label {shown}, not 0 to {last}")
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
