"""CIFAR as PNG files: in Hugging Face's Parquet files, from Kaggle, or a folder for each class."""

import csv
import functools
import io
import pathlib
from collections.abc import Iterable

import numpy as np

from jaxcifar.data.dataset import SPLITS
from jaxcifar.data.source import Read, Source, Unlabelled, check_labels, damaged, require_count
from jaxcifar.data.spec import Spec
from jaxcifar.errors import UserError, in_short, raise_temporary

_LARGEST = 2**14  # bytes of one picture; 32×32 pixels take 3 kB where they do not compress at all


def find(spec: Spec, folder: pathlib.Path) -> list[Source]:
    """Returns what is in `folder` of the three forms."""
    # Kaggle's test images have no labels, so that the others come first.
    return [*_find_parquet(spec, folder), *_find_classes(spec, folder), *_find_kaggle(spec, folder)]


def _decode(raw: bytes) -> np.ndarray:
    """Returns a picture's pixels [32, 32, 3] uint8.

    Raises:
      Exception: it is not a PNG file, or has another size or other channels. Its size is compared
        before its pixels are unpacked.
    """
    from PIL import Image  # here, not above: only these forms need it

    if len(raw) > _LARGEST:
        raise ValueError(f"it has {len(raw):,} bytes, more than a picture of 32×32 takes")
    with Image.open(io.BytesIO(raw), formats=("PNG",)) as picture:
        if picture.size != (32, 32):
            raise ValueError(f"it has {picture.width}×{picture.height} pixels, not 32×32")
        if picture.mode not in ("RGB", "L", "P"):
            raise ValueError(f"its pixels are of type {picture.mode}, not RGB")
        return np.asarray(picture.convert("RGB"))


def _read(spec: Spec, pictures: Iterable[tuple[object, bytes]], count: int) -> np.ndarray:
    """Returns the pixels of (name, content) pairs, [N, 32, 32, 3] uint8."""
    images = np.empty((count, 32, 32, 3), np.uint8)
    for number, (where, raw) in enumerate(pictures):
        try:
            images[number] = _decode(raw)
        except Exception as error:  # a damaged picture raises almost anything
            raise damaged(spec, where, in_short(error)) from error
    return images


def _visible(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    """Returns the files of a pattern, sorted, without what macOS adds to them: ._cat.png."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def _content(path: pathlib.Path) -> tuple[pathlib.Path, bytes]:
    if not path.is_file():  # reading a pipe would block
        raise UserError(f"{path} is missing, or is not a file.")
    with path.open("rb") as stream:
        return path, stream.read(_LARGEST + 1)


# --- Parquet ----------------------------------------------------------------------------------


def _find_parquet(spec: Spec, folder: pathlib.Path) -> list[Source]:
    found = []
    # "plain_text" is the folder in uoft-cs/cifar10, "cifar100" that in uoft-cs/cifar100.
    names = ["plain_text"] * (spec.name == "cifar10") + [spec.name, "data", ""]
    for candidate in (folder / name for name in names):
        files = {
            split: [
                *_visible(candidate, f"{split}-*.parquet"),
                *_visible(candidate, f"{split}/*.parquet"),
            ]
            for split in SPLITS
        }
        if any(files.values()):
            missing = [f"{split}-*.parquet" for split in SPLITS if not files[split]]
            read = functools.partial(_from_parquet, spec, candidate, files)
            found.append(Source(candidate, read, missing))
    return found


def _from_parquet(
    spec: Spec, folder: pathlib.Path, files: dict[str, list[pathlib.Path]], split: str
) -> Read:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{folder} holds Parquet files, which pyarrow reads: pip install 'jaxcifar[parquet]'."
        ) from error
    columns, rows, size = ["img", spec.label_column], 0, 0
    pictures, labels = [], []
    for path in files[split]:
        try:
            with pyarrow.parquet.ParquetFile(path) as parquet:
                about, names = parquet.metadata, parquet.schema_arrow.names
                if absent := [name for name in columns if name not in names]:
                    raise ValueError(f"it has the columns {names}, but no {absent}")
                rows += about.num_rows
                size += sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
                if rows > spec.count(split) or size > spec.count(split) * _LARGEST:
                    raise ValueError(f"{rows:,} images of {size:,} bytes are too many")
                for batch in parquet.iter_batches(1000, columns=columns):
                    for content in batch["img"].field("bytes").to_pylist():
                        pictures.append((f"{path}: image {len(pictures)}", content))
                    labels += batch[spec.label_column].to_pylist()
        except Exception as error:  # pyarrow's own errors, and those of other columns
            raise_temporary(error, path)
            raise damaged(spec, path, in_short(error)) from error
    require_count(spec, folder, split, len(pictures))
    images = _read(spec, pictures, len(pictures))
    return Read(images, check_labels(spec, labels, folder))


# --- Kaggle -----------------------------------------------------------------------------------


def _find_kaggle(spec: Spec, folder: pathlib.Path) -> list[Source]:
    table = folder / "trainLabels.csv"
    if spec.name != "cifar10" or not table.is_file():
        return []  # the competition was on CIFAR-10
    twice = folder / "train" / "train"
    pictures = twice if twice.is_dir() else folder / "train"
    missing = [] if pictures.is_dir() else ["train/ (unpack train.7z)"]
    return [Source(folder, functools.partial(_from_kaggle, spec, table, pictures), missing)]


def _from_kaggle(spec: Spec, table: pathlib.Path, pictures: pathlib.Path, split: str) -> Read:
    if split == "test":
        raise Unlabelled(
            f"The test images of {table.parent} have no labels: Kaggle keeps them. Without them, "
            "--config.data.protocol=holdout validates on a tenth of the training images."
        )
    try:
        with table.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
            rows = list(csv.DictReader(stream))
    except csv.Error as error:  # such as a quote without its end, after which all is one field
        raise damaged(spec, table, str(error)) from error
    lines = [(row.get("id") or "", row.get("label") or "") for row in rows]
    numbers = {name: number for number, name in enumerate(spec.class_names)}
    for name, label in lines:
        if not name.isdecimal() or label not in numbers:
            row = f"it has the row {name!r}, {label!r}, not a number and a class"
            raise damaged(spec, table, row)
    rows = dict(lines)
    if len(rows) < len(lines):
        raise damaged(spec, table, "it lists an image twice")
    require_count(spec, table, "train", len(rows))
    names = sorted(rows, key=int)
    images = _read(spec, (_content(pictures / f"{name}.png") for name in names), len(names))
    return Read(images, np.array([numbers[rows[name]] for name in names], np.int32))


# --- a folder for each class ------------------------------------------------------------------


def _find_classes(spec: Spec, folder: pathlib.Path) -> list[Source]:
    wanted = [f"{split}/{name}" for split in SPLITS for name in spec.class_names]
    missing = [f"{name}/" for name in wanted if not (folder / name).is_dir()]
    if len(missing) == len(wanted):
        return []
    return [Source(folder, functools.partial(_from_classes, spec, folder), missing)]


def _from_classes(spec: Spec, folder: pathlib.Path, split: str) -> Read:
    found = []
    for label, name in enumerate(spec.class_names):
        paths = _visible(folder / split / name, "*.png")
        # "10.png" comes after "9.png".
        for number, path in enumerate(sorted(paths, key=lambda path: (len(path.name), path.name))):
            found.append((number, label, path))
    if not found and (others := next(iter(_visible(folder / split, "*/*.*")), None)):
        raise UserError(
            f"{folder / split} has no .png files, only files like {others.name}. Other formats are "
            "not read: JPEG, for one, alters the pixels. Put another copy there."
        )
    require_count(spec, folder / split, split, len(found))
    found.sort()  # the classes in turn, so that the first N images are of all classes
    images = _read(spec, (_content(path) for _, _, path in found), len(found))
    return Read(images, np.array([label for _, label, _ in found], np.int32))
