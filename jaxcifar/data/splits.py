"""Which images a run trains on, validates on and tests on."""

from typing import Any, NamedTuple

import numpy as np

from jaxcifar.data.dataset import Dataset
from jaxcifar.errors import UserError, choose

PROTOCOLS = ("test", "holdout")


class Splits(NamedTuple):
    """The images of a run; `test` is None where they are what it validates on."""

    train: Dataset
    validation: Dataset
    test: Dataset | None

    @property
    def provenance(self) -> dict[str, dict[str, Any]]:
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


def check_apart(train: Dataset, test: Dataset) -> None:
    """Refuses test images that are training images, as of a file that was copied over another.

    A few are tolerated: people's own sets hold some images twice.

    Raises:
      UserError: more than half of the test images are training images too, pixel by pixel.
    """
    seen = {hash(image.tobytes()) for image in train.images}
    both = sum(hash(image.tobytes()) in seen for image in test.images)
    if both > len(test) / 2:
        where = test.provenance["source"]
        raise UserError(
            f"{both:,} of the {len(test):,} test images in {where} are training images too, so "
            "they would test nothing. Was one file copied over another? Get the images again, or "
            "keep other images as the test set."
        )


def split_holdout(train: Dataset) -> tuple[Dataset, Dataset]:
    """Splits a training set into one part to train on and one to choose the best epoch on.

    The held-out part is a tenth of each class, or one image of a class of few. It depends on no
    seed, so that all runs choose on the same images if they have them in the same order, which
    depends on the files that they were read from.

    Returns:
      (the rest, the held-out part): 45,000 and 5,000 images of CIFAR-10.
    """
    generator = np.random.default_rng(10)
    held_out = np.zeros(len(train), bool)
    for label in range(len(train.class_names)):
        rows = np.flatnonzero(train.labels == label)
        count = max(round(0.1 * len(rows)), min(1, len(rows) - 1))
        held_out[generator.permutation(rows)[:count]] = True
    return train.take(~held_out, "training part"), train.take(held_out, "held-out part")
