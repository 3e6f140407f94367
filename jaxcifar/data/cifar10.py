"""CIFAR-10 from an official archive, its unpacked folder, or tensorflow-datasets.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import hashlib
import io
import os
import pathlib
import pickle
import socket
import tarfile
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxcifar.data.dataset import Dataset, fingerprint
from jaxcifar.errors import UserError

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip
# Of the 50,000 training images. A frequently copied wrong constant is 0.2023 for the first std.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

_PER_FILE, _PIXELS = 10_000, 3 * 32 * 32
_FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_ALL_FILES = [*_FILES["train"], *_FILES["test"]]
_HOST = ("www.cs.toronto.edu", 443)  # where tfds downloads CIFAR-10 from

# Published checksums (MD5) of the archives, https://www.cs.toronto.edu/~kriz/cifar.html, and of
# the files of the python version. The files of the binary version have none.
_ARCHIVE_MD5 = {
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
}
_PYTHON_FILE_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


def default_dir() -> pathlib.Path:
    """Returns `$JAXCIFAR_DATA`, else ~/.cache/jaxcifar/data."""
    return pathlib.Path(os.environ.get("JAXCIFAR_DATA") or "~/.cache/jaxcifar/data").expanduser()


def load(split: str, data_dir: str = "") -> Dataset:
    """Loads one split of CIFAR-10, in the official order.

    Looks in `data_dir` for, in this order: cifar-10-binary.tar.gz, cifar-10-python.tar.gz,
    cifar-10-batches-bin/, cifar-10-batches-py/, the same files in `data_dir` itself; else lets
    tensorflow-datasets prepare CIFAR-10 there, which downloads 163 MB the first time.

    Args:
      split: "train" (50,000 images) or "test" (10,000).
      data_dir: the folder; "" is `default_dir()`.

    Raises:
      UserError: nothing there and no way to download; or files that are damaged.
    """
    folder = pathlib.Path(data_dir).expanduser() if data_dir else default_dir()
    if data_dir and not folder.is_dir():
        raise UserError(f"data.dir is {data_dir!r}, which is not a folder.")
    for archive in _ARCHIVE_MD5:
        if (folder / archive).is_file():
            return _from_archive(folder / archive, split)
    for candidate in (folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py", folder):
        parts = [candidate / (name + end) for name in _ALL_FILES for end in ("", ".bin")]
        if any(part.exists() for part in parts) or (candidate != folder and candidate.is_dir()):
            return _from_folder(candidate, split)
    return _from_tfds(folder, split)


# --- archives and folders ---------------------------------------------------------------------


def _from_archive(path: pathlib.Path, split: str) -> Dataset:
    md5 = hashlib.md5()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            md5.update(block)
    binary = "binary" in path.name
    wanted = {name + ".bin" if binary else name: name for name in _FILES[split]}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = wanted.get(pathlib.PurePosixPath(member.name).name)
                if name and member.isfile() and (file := archive.extractfile(member)):
                    contents[name] = file.read()  # and on to the end: gzip's checksum is there
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            f"{path} cannot be read to its end ({error}). It may be an unfinished download: "
            "delete it and fetch it again."
        ) from error
    missing = [inside for inside, name in wanted.items() if name not in contents]
    if missing:
        raise UserError(f"{path} holds no {', '.join(missing)}: it is not the CIFAR-10 archive.")
    official = md5.hexdigest() == _ARCHIVE_MD5[path.name]
    return _parse(contents, split, binary, path, official)


def _from_folder(folder: pathlib.Path, split: str) -> Dataset:
    binary = (folder / "data_batch_1.bin").exists() or folder.name.endswith("-bin")
    paths = {name: folder / (name + ".bin" if binary else name) for name in _ALL_FILES}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise UserError(
            f"{folder} holds only a part of CIFAR-10: {', '.join(missing)} is missing. "
            "Unpack the archive again, or point --config.data.dir at a folder that has all six."
        )
    contents = {name: paths[name].read_bytes() for name in _FILES[split]}
    official = not binary and all(
        hashlib.md5(raw).hexdigest() == _PYTHON_FILE_MD5[name] for name, raw in contents.items()
    )
    return _parse(contents, split, binary, folder, official)


def _parse(
    contents: dict[str, bytes], split: str, binary: bool, source: pathlib.Path, official: bool
) -> Dataset:
    parse: Callable[[bytes, str], tuple[np.ndarray, np.ndarray]]
    parse = _parse_binary if binary else _parse_python
    images, labels = zip(
        *(parse(contents[name], f"{source}: {name}") for name in _FILES[split]), strict=True
    )
    return _dataset(images, labels, split, str(source), official)


def _parse_binary(raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Parses 10,000 records of one label byte and 3,072 channel-planar pixel bytes."""
    size = _PER_FILE * (1 + _PIXELS)
    if len(raw) != size:
        raise UserError(f"{where}.bin has {len(raw):,} bytes instead of {size:,}: it is damaged.")
    records = np.frombuffer(raw, np.uint8).reshape(_PER_FILE, 1 + _PIXELS)
    return _checked(records[:, 1:], records[:, 0], where)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and plain containers, and refuses to run anything else."""

    _ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "encode"})

    def find_class(self, module_name: str, global_name: str):
        if global_name in self._ALLOWED and module_name.split(".")[0] in ("numpy", "_codecs"):
            # The official files name numpy.core, which NumPy 2 moved.
            return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)
        raise pickle.UnpicklingError(f"refused to load {module_name}.{global_name}")


def _parse_python(raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Parses a pickled dict of b"data" [10000, 3072] uint8 and b"labels", a list."""
    try:
        batch = _ArraysOnly(io.BytesIO(raw), encoding="bytes").load()
        pixels, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    except Exception as error:  # a damaged pickle raises almost anything
        raise UserError(f"{where} cannot be unpickled ({error}): it is damaged.") from error
    if pixels.shape != (_PER_FILE, _PIXELS) or labels.shape != (_PER_FILE,):
        raise UserError(
            f"{where} has pixels {pixels.shape} and labels {labels.shape} instead of "
            f"({_PER_FILE}, {_PIXELS}) and ({_PER_FILE},): it is damaged."
        )
    return _checked(pixels, labels, where)


def _checked(pixels: np.ndarray, labels: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Checks the labels; turns channel-planar pixels [N, 3072] into [N, 32, 32, 3]."""
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if wrong.size:
        raise UserError(
            f"{where}: record {wrong[0]} has the label {labels[wrong[0]]}, not 0 to 9: "
            "it is damaged."
        )
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _dataset(
    images: Iterable[np.ndarray],
    labels: Iterable[np.ndarray],
    split: str,
    source: str,
    official: bool,
) -> Dataset:
    pixels = np.ascontiguousarray(np.concatenate(list(images)), np.uint8)
    classes = np.concatenate(list(labels)).astype(np.int32)
    provenance = {
        "name": "cifar10",
        "split": split,
        "source": source,
        "official": official,
        "images": len(classes),
        "sha256": fingerprint(pixels, classes),
    }
    return Dataset(pixels, classes, CLASSES, provenance, MEAN, STD)


# --- tensorflow-datasets ----------------------------------------------------------------------


def _from_tfds(folder: pathlib.Path, split: str) -> Dataset:
    """Reads CIFAR-10 as tfds prepares it; its download is checked by SHA-256."""
    builder = _tfds_builder(folder)
    if not builder.is_prepared():
        _require_network(folder)
        try:
            builder.download_and_prepare()
        except Exception as error:  # tfds lets through what its HTTP client and disk raise
            raise UserError(
                f"tensorflow-datasets could not prepare CIFAR-10 in {folder}: {error}"
            ) from error
    # tfds shuffles as it writes; the id ("train_00042") is the place in the official order.
    records = sorted(builder.as_data_source(split=split), key=lambda record: record["id"])
    images = np.stack([record["image"] for record in records])
    labels = np.array([record["label"] for record in records])
    return _dataset([images], [labels], split, f"tensorflow-datasets in {folder}", official=True)


def _tfds_builder(folder: pathlib.Path) -> Any:
    """tfds' own CIFAR-10 builder, but for the function in which 4.9.10 needs TensorFlow.

    It opens the files through tf.io, and encodes arrays (but not PNG files) through TensorFlow.
    """
    # Here, not above: tfds takes seconds to import, and a local archive does not need it.
    from PIL import Image
    from tensorflow_datasets.image_classification import cifar

    def png(image: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG", compress_level=1)
        return file.getvalue()

    class Cifar10(cifar.Cifar10, skip_registration=True):
        def _generate_examples(self, split_prefix, filepaths):
            index = 0
            for path in filepaths:
                images, labels = _parse_binary(pathlib.Path(path).read_bytes(), str(path)[:-4])
                for image, label in zip(images, labels, strict=True):
                    example_id = f"{split_prefix}{index:05d}"
                    yield index, {"id": example_id, "image": png(image), "label": int(label)}
                    index += 1

    return Cifar10(data_dir=str(folder), file_format="array_record")


def _require_network(folder: pathlib.Path) -> None:
    """Fails within seconds where CIFAR-10 cannot be downloaded; tfds retries for minutes.

    Raises:
      UserError: the host cannot be reached.
    """
    failure: list[OSError] = [TimeoutError("no answer in 5 seconds")]

    def connect() -> None:
        try:
            socket.create_connection(_HOST, timeout=5).close()
            failure.clear()
        except OSError as error:
            failure[:] = [error]

    # In a thread, as nothing else bounds the time that looking up the host's name takes.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout=5)
    if failure:
        error = failure[0]
        raise UserError(
            f"CIFAR-10 was not found, and cannot be downloaded ({_HOST[0]}: {error}).\n"
            f"Looked in {folder} for cifar-10-binary.tar.gz, cifar-10-python.tar.gz, "
            "cifar-10-batches-bin/, cifar-10-batches-py/ and a copy prepared by "
            "tensorflow-datasets.\nEither put one of the official archives "
            "(https://www.cs.toronto.edu/~kriz/cifar.html) there, or name the folder that has it: "
            "--config.data.dir=FOLDER or JAXCIFAR_DATA=FOLDER.\n"
            "To try without CIFAR-10: --config=configs/quickstart.py."
        ) from error
