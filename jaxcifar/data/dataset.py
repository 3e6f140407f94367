"""What every source of images returns."""

import dataclasses
import hashlib

import numpy as np

from jaxcifar.errors import UserError

SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images with labels, and where they came from.

    Attributes:
      images: [N, 32, 32, 3] uint8, RGB.
      labels: [N] int32, in 0 … len(class_names) − 1.
      class_names: the classes, in the order of the labels.
      provenance: JSON-ready facts: "name", "split", "source", "official" (True when a published
        checksum was verified, here or by tfds as it prepared the set; None where none is
        published), "images", "sha256" (of the pixels, then the labels).
      mean, std: of the training pixels by channel, in units of 1 (pixel / 255).
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    provenance: dict[str, object]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray | slice, subset: str) -> "Dataset":
        """Returns the images at `rows`, and a provenance that says they are the subset `subset`."""
        images, labels = self.images[rows], self.labels[rows]
        before = self.provenance.get("subset")
        provenance = self.provenance | {
            "subset": f"{subset} of the {before}" if before else subset,
            "images": len(labels),
            "sha256": fingerprint(images, labels),
        }
        return dataclasses.replace(self, images=images, labels=labels, provenance=provenance)


def check(dataset: Dataset, classes: int) -> None:
    """Checks that a data set is as `Dataset` says, which compiled programs take for granted.

    Raises:
      UserError: the shape or type of the images or the labels, a label, or the number of classes,
        which is to be `classes`, is another.
    """
    images, labels, names = dataset.images, dataset.labels, dataset.class_names
    about = dataset.provenance
    what = f"The data set {about.get('name')!r}, split {about.get('split')!r},"
    if images.shape[1:] != (32, 32, 3) or images.dtype != np.uint8:
        raise UserError(
            f"{what} has images of shape {images.shape} and type {images.dtype}; they must be "
            "[N, 32, 32, 3] uint8."
        )
    if labels.shape != images.shape[:1] or labels.dtype != np.int32:
        raise UserError(
            f"{what} has labels of shape {labels.shape} and type {labels.dtype}; they must be "
            f"[{len(images)}] int32."
        )
    if len(names) != classes:
        raise UserError(f"{what} has {len(names)} class names; its entry says {classes} classes.")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise UserError(
            f"{what} has labels from {labels.min()} to {labels.max()}; they must be from 0 to "
            f"{classes - 1}."
        )


def check_alike(train: Dataset, test: Dataset) -> None:
    """Checks that two parts of a data set have the same classes, and are normalised alike.

    Raises:
      UserError: they are not: what was trained on one would be evaluated as another.
    """
    for field in ("class_names", "mean", "std"):
        ours, theirs = getattr(train, field), getattr(test, field)
        if tuple(ours) != tuple(theirs):
            raise UserError(
                f"The data set {train.provenance.get('name')!r} has the {field} {ours} for "
                f"training and {theirs} for testing. Both must be those of the training images."
            )


def fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """Returns the SHA-256 of the pixels followed by the labels as bytes, as hex digits."""
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(labels.astype(np.uint8).data)
    return digest.hexdigest()


def provenance_of(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    name: str,
    split: str,
    source: str,
    official: bool | None = None,
) -> dict[str, object]:
    """Returns the provenance of a whole split; see `Dataset`."""
    return {
        "name": name,
        "split": split,
        "source": source,
        "official": official,
        "images": len(labels),
        "sha256": fingerprint(images, labels),
    }
