"""Handwritten digits that come with scikit-learn: real images that need no download."""

from typing import Any

import numpy as np

from jaxcifar.data.dataset import Dataset, provenance_of

# Every fifth image of each class is for testing: a fixed split, 1,442 and 355 images.
_TEST_EVERY = 5
MEAN, STD = (0.3052,) * 3, (0.3760,) * 3  # of the 1,442 enlarged training images


def load(split: str) -> Dataset:
    """Returns one split of the UCI digits: 8×8 pixels enlarged to 32×32, three equal channels."""
    # Here, not above: scikit-learn takes a second to import, and only this set needs it.
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    labels = digits.target.astype(np.int32)
    of_class = np.zeros(len(labels), int)  # each image's index within its class
    for label in range(10):
        rows = labels == label
        of_class[rows] = np.arange(rows.sum())
    chosen = (of_class % _TEST_EVERY == _TEST_EVERY - 1) == (split == "test")
    gray = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    gray = gray.repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(gray[..., None], 3, axis=-1)
    labels = labels[chosen]
    source = "sklearn.datasets.load_digits"
    provenance = provenance_of(images, labels, name="digits", split=split, source=source)
    return Dataset(images, labels, tuple("0123456789"), provenance, MEAN, STD)
