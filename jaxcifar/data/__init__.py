"""Image sets by name: uint8 images and int32 labels in NumPy arrays, with their provenance."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxcifar.data import cifar, digits, synthetic
from jaxcifar.data.dataset import SPLITS, Dataset, check, check_alike
from jaxcifar.data.source import Unlabelled
from jaxcifar.data.splits import PROTOCOLS, Splits, check_apart, split, split_holdout
from jaxcifar.errors import UserError, choose

__all__ = [
    "DATASETS",
    "PROTOCOLS",
    "Dataset",
    "Splits",
    "Unlabelled",
    "is_counted",
    "load",
    "load_splits",
    "num_classes",
    "split",
    "split_holdout",
    "splits_without_images",
    "without_images",
]


class _Entry(NamedTuple):
    classes: int
    load: Callable[[str, str, int | None], Dataset]  # (split, data_dir, size)
    spec: cifar.Spec | None = None


def _cifar(spec: cifar.Spec) -> _Entry:
    def load(split: str, folder: str, size: int | None) -> Dataset:
        return cifar.load(spec, split, folder)

    return _Entry(len(spec.class_names), load, spec)


# To add a data set, add it here.
_ENTRIES = {
    "cifar10": _cifar(cifar.CIFAR10),
    "cifar100": _cifar(cifar.CIFAR100),
    "digits": _Entry(10, lambda split, folder, size: digits.load(split)),
    "synthetic": _Entry(10, lambda split, folder, size: synthetic.load(split, size)),
}
DATASETS = tuple(_ENTRIES)


def load(
    name: str, split: str, *, data_dir: str | pathlib.Path = "", size: int | None = None
) -> Dataset:
    """Loads one split of an image set.

    Args:
      name: one of `DATASETS`: "cifar10", "cifar100" (its 100 fine classes), "digits" (1,797
        handwritten digits that come with scikit-learn, enlarged to 32×32×3) or "synthetic"
        (generated).
      split: "train" or "test".
      data_dir: where CIFAR is or will be prepared; "" is `$JAXCIFAR_DATA`, else
        ~/.cache/jaxcifar/data. See `jaxcifar.data.cifar.load`.
      size: how many images of "synthetic" to generate; None is 1,024 for train and 256 for test.

    Returns:
      A `Dataset`: images [N, 32, 32, 3] uint8, labels [N] int32.

    Raises:
      Unlabelled: CIFAR's test images were found without labels.
      UserError: an unknown name or split; or CIFAR is missing or damaged; or another data set is
        not as `Dataset` says.
    """
    choose("data.name", name, DATASETS)
    choose("split", split, SPLITS)
    if size is not None and name != "synthetic":
        raise UserError(f"size is {size}; only 'synthetic' has a size to choose, not {name!r}.")
    entry = _ENTRIES[name]
    found = entry.load(split, str(data_dir), size)
    check(found, entry.classes)
    return found


def load_splits(name: str, data_dir: str = "", *, protocol: str = "test", limit: int = 0) -> Splits:
    """Loads an image set, divided as a protocol says.

    Args:
      name, data_dir: see `load`.
      protocol, limit: see `split`.

    Raises:
      UserError: see `load` and `split`; or most test images are training images too, or the two
        parts differ in their classes or their normalisation.
    """
    train = load(name, "train", data_dir=data_dir)
    try:
        test = load(name, "test", data_dir=data_dir)
    except Unlabelled:
        if protocol != "holdout":
            raise
        test = None
    else:
        check_alike(train, test)
        check_apart(train, test)
    return split(train, test, protocol=protocol, limit=limit)


def without_images(name: str, count: int = 0, data_dir: str = "") -> Dataset:
    """Returns the classes and the normalisation of a data set, as a `Dataset` without pixels.

    CIFAR's files need not be there.

    Args:
      name: one of `DATASETS`.
      count: the length of the result: images [count, 0, 0, 3] uint8, and labels [count] int32 that
        name each class in turn.
      data_dir: where images are that have to be read, see `load`.
    """
    known = _ENTRIES[choose("data.name", name, DATASETS)].spec
    # The others are generated, come with scikit-learn, or are a user's own.
    about = load(name, "test", data_dir=data_dir) if known is None else known
    images, labels = np.zeros((count, 0, 0, 3), np.uint8), np.arange(count, dtype=np.int32)
    labels %= len(about.class_names)
    return Dataset(images, labels, about.class_names, {}, about.mean, about.std)


def splits_without_images(
    name: str, data_dir: str = "", *, protocol: str = "test", limit: int = 0
) -> Splits:
    """Returns what `load_splits` does, but CIFAR's images are only counted: `without_images`."""
    known = _ENTRIES[choose("data.name", name, DATASETS)].spec
    if known is None:
        return load_splits(name, data_dir, protocol=protocol, limit=limit)
    parts = (without_images(name, known.count(split)) for split in SPLITS)
    return split(*parts, protocol=protocol, limit=limit)


def is_counted(name: str) -> bool:
    """Whether the numbers of an image set's images are known without reading them."""
    return _ENTRIES[choose("data.name", name, DATASETS)].spec is not None


def num_classes(name: str) -> int:
    """Returns the number of classes of an image set, without loading it."""
    return _ENTRIES[choose("data.name", name, DATASETS)].classes
