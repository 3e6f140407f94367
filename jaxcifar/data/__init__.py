"""Image sets by name: uint8 images and int32 labels in NumPy arrays, with their provenance."""

from jaxcifar.data import cifar10, digits, synthetic
from jaxcifar.data.dataset import Dataset, split_holdout
from jaxcifar.data.splits import PROTOCOLS, Splits, split
from jaxcifar.errors import UserError, choose

__all__ = ["DATASETS", "PROTOCOLS", "Dataset", "Splits", "load", "split", "split_holdout"]

DATASETS = ("cifar10", "digits", "synthetic")
SPLITS = ("train", "test")


def load(name: str, split: str, *, data_dir: str = "", size: int | None = None) -> Dataset:
    """Loads one split of an image set.

    Args:
      name: "cifar10", "digits" (1,797 handwritten digits that come with scikit-learn, enlarged to
        32×32×3) or "synthetic" (generated).
      split: "train" or "test".
      data_dir: where CIFAR-10 is or will be prepared; "" is `$JAXCIFAR_DATA`, else
        ~/.cache/jaxcifar/data. See `jaxcifar.data.cifar10.load`.
      size: how many images of "synthetic" to generate; None is 1,024 for train and 256 for test.

    Returns:
      A `Dataset`: images [N, 32, 32, 3] uint8, labels [N] int32.

    Raises:
      UserError: an unknown name or split, or CIFAR-10 is missing or damaged.
    """
    choose("data.name", name, DATASETS)
    choose("split", split, SPLITS)
    if size is not None and name != "synthetic":
        raise UserError(f"size is {size}; only 'synthetic' has a size to choose, not {name!r}.")
    if name == "cifar10":
        return cifar10.load(split, data_dir)
    if name == "digits":
        return digits.load(split)
    return synthetic.load(split, size)


def num_classes(name: str) -> int:
    """Returns the number of classes of an image set."""
    choose("data.name", name, DATASETS)
    return 10
