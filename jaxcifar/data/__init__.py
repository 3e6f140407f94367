"""Image sets by name: uint8 images and int32 labels in NumPy arrays, with their provenance."""

from collections.abc import Callable
from typing import NamedTuple

from jaxcifar.data import cifar, digits, synthetic
from jaxcifar.data.dataset import Dataset, split_holdout
from jaxcifar.data.splits import PROTOCOLS, Splits, split
from jaxcifar.errors import UserError, choose

__all__ = [
    "DATASETS",
    "PROTOCOLS",
    "Dataset",
    "Splits",
    "load",
    "num_classes",
    "split",
    "split_holdout",
]


class _Source(NamedTuple):
    classes: int
    load: Callable[[str, str, int | None], Dataset]  # (split, data_dir, size)


# To add a data set, add it here.
_SOURCES = {
    "cifar10": _Source(10, lambda split, folder, size: cifar.load(cifar.CIFAR10, split, folder)),
    "cifar100": _Source(100, lambda split, folder, size: cifar.load(cifar.CIFAR100, split, folder)),
    "digits": _Source(10, lambda split, folder, size: digits.load(split)),
    "synthetic": _Source(10, lambda split, folder, size: synthetic.load(split, size)),
}
DATASETS = tuple(_SOURCES)
SPLITS = ("train", "test")


def load(name: str, split: str, *, data_dir: str = "", size: int | None = None) -> Dataset:
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
      UserError: an unknown name or split, or CIFAR is missing or damaged.
    """
    choose("data.name", name, DATASETS)
    choose("split", split, SPLITS)
    if size is not None and name != "synthetic":
        raise UserError(f"size is {size}; only 'synthetic' has a size to choose, not {name!r}.")
    return _SOURCES[name].load(split, data_dir, size)


def num_classes(name: str) -> int:
    """Returns the number of classes of an image set, without loading it."""
    return _SOURCES[choose("data.name", name, DATASETS)].classes
