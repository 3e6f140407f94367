"""What every source of images returns."""

import dataclasses
import hashlib

import numpy as np

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
