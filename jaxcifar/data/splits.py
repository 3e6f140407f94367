"""Which images a run trains on, validates on and tests on."""

from typing import NamedTuple

from jaxcifar.data.dataset import Dataset, split_holdout
from jaxcifar.errors import UserError, choose

PROTOCOLS = ("test", "holdout")


class Splits(NamedTuple):
    """The images of a run; `test` is None where they are what it validates on."""

    train: Dataset
    validation: Dataset
    test: Dataset | None

    @property
    def provenance(self) -> dict[str, dict]:
        """Where the images come from, by part."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: images.provenance for name, images in parts.items() if images is not None}


def split(
    train: Dataset, test: Dataset | None, *, protocol: str = "test", limit: int = 0
) -> Splits:
    """Divides an image set as a protocol says.

    Args:
      train, test: the set's own splits; None where there are no test images.
      protocol: "test" validates on the test images, as the original report did; "holdout" on a
        tenth of the training images, and keeps the test images for the end.
      limit: train on only the first N images; 0 is all.

    Raises:
      UserError: the protocol is unknown or needs test images, or there are fewer images than
        `limit`.
    """
    choose("data.protocol", protocol, PROTOCOLS)
    validation = test
    if protocol == "holdout":
        train, validation = split_holdout(train)
    if validation is None:
        raise UserError("config.data.protocol is 'test', and there are no test images.")
    if limit > len(train):
        raise UserError(
            f"config.train.limit_train_images is {limit:,}; there are {len(train):,} training "
            "images. Set it to 0 for all of them."
        )
    if limit:
        train = train.take(slice(limit), f"the first {limit}")
    return Splits(train, validation, test if protocol == "holdout" else None)
