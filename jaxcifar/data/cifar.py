"""CIFAR-10 and CIFAR-100 in the forms in which people have them, found in a folder."""

import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxcifar.data import batches, pictures, tfds
from jaxcifar.data.dataset import Dataset, provenance_of
from jaxcifar.data.source import Partial, Read, Source, Unlabelled
from jaxcifar.data.spec import CIFAR10, CIFAR100, Spec
from jaxcifar.errors import UserError, note
from jaxcifar.options import user_path

__all__ = ["CIFAR10", "CIFAR100", "Spec", "default_dir", "load"]

KERAS = "~/.keras/datasets"


def default_dir() -> pathlib.Path:
    """Returns `$JAXCIFAR_DATA`, else ~/.cache/jaxcifar/data."""
    return user_path(os.environ.get("JAXCIFAR_DATA") or "~/.cache/jaxcifar/data")


def load(spec: Spec, split: str, data_dir: str = "") -> Dataset:
    """Loads one split.

    Looks in `data_dir` for, in this order: an archive, the folder that it unpacks to, or the same
    files in `data_dir` itself (the binary format, then the Python one; under the official names or
    Keras'); Hugging Face's Parquet files; pictures in a folder for each class; Kaggle's pictures
    with trainLabels.csv. If no folder is named and none of these is found, in Keras' cache.
    Otherwise, or if only parts or images without labels are found beside a copy that
    tensorflow-datasets prepared, that prepares the data set in `data_dir`, and downloads about
    160 MB the first time.

    Args:
      spec: the data set, `CIFAR10` or `CIFAR100`.
      split: "train" or "test".
      data_dir: the folder; "" is `default_dir()`.

    Returns:
      A `Dataset`: images [N, 32, 32, 3] uint8, labels [N] int32. The order is the official one,
      that of Kaggle's numbers or of the rows of Parquet files; from a folder for each class, the
      classes come in turn.

    Raises:
      Unlabelled: the test images that were found have no labels.
      UserError: nothing was found and nothing can be downloaded; only a part was found; or files
        are damaged, or differ between two forms in the same folder.
    """
    folder = user_path(data_dir) if data_dir else default_dir()
    if data_dir and not folder.is_dir():
        raise UserError(
            f"data.dir is {data_dir!r}, which is not a folder. Name one that exists, or create it."
        )
    read, source = None, ""
    unnamed = not data_dir and not os.environ.get("JAXCIFAR_DATA")
    if found := _find(spec, folder):
        try:
            read, source = _read(spec, found, split)
        except (Partial, Unlabelled) as error:
            if not tfds.is_prepared(spec, folder):
                raise
            note(f"Skipped: {error}")
    elif unnamed and (found := _find(spec, user_path(KERAS))):
        try:
            read, source = _read(spec, found, split)
        except UserError as error:  # such as half a download
            note(f"Skipped: {error}")
    if read is None:
        read, source = tfds.read(spec, folder, split), f"tensorflow-datasets in {folder}"
    images, labels, official = read
    provenance = provenance_of(
        images, labels, name=spec.name, split=split, source=source, official=official
    )
    return Dataset(images, labels, spec.class_names, provenance, spec.mean, spec.std)


def _find(spec: Spec, folder: pathlib.Path) -> list[Source]:
    return [*batches.find(spec, folder), *pictures.find(spec, folder)]


def _read(spec: Spec, found: Sequence[Source], split: str) -> tuple[Read, str]:
    """Reads a split from the first complete source, and compares others; says which was read."""
    whole = [source for source in found if not source.missing]
    parts = [source for source in found if source.missing]
    if not whole:
        part = parts[0]
        names = ", ".join(part.missing[:10]) + (", …" if len(part.missing) > 10 else "")
        raise Partial(
            f"{part.path} contains only a part of {spec.title}: {names} is missing. Unpack the "
            "archive again, or point --config.data.dir at a folder that is complete."
        )
    first, *others = whole
    for part in parts if split == "train" else ():
        if part.path != first.path:
            note(f"{part.path} contains only a part of {spec.title}; {first.path} is used.")
    read = first.read(split)
    for other in others:
        _compare(first.path, read, other, split)
    return read, str(first.path)


def _compare(path: pathlib.Path, read: Read, other: Source, split: str) -> None:
    """Refuses another source in the same folder that holds other images, in whatever order."""
    try:
        found = other.read(split)
        same = np.array_equal(read.labels, found.labels) and np.array_equal(
            read.images, found.images
        )
        if same or _records(read) == _records(found):
            return
    except Unlabelled:  # Kaggle's test images
        return
    except UserError as error:
        raise UserError(f"{error} Or move it elsewhere: {path} is there too.") from error
    raise UserError(
        f"{path} and {other.path} hold different {split} images. Move one of them elsewhere."
    )


def _records(read: Read) -> list[bytes]:
    pairs = zip(read.images, read.labels, strict=True)
    return sorted(
        hashlib.blake2b(image.tobytes() + bytes([label]), digest_size=16).digest()
        for image, label in pairs
    )
