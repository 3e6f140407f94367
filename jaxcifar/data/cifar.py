"""CIFAR-10 and CIFAR-100 from an official archive, its unpacked folder, or tensorflow-datasets.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. What tells one data set
of this family from another is in a `Spec`; the rest of the module reads any of them.
"""

import dataclasses
import gzip
import hashlib
import io
import os
import pathlib
import pickle
import socket
import tarfile
import threading
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcifar.data.dataset import Dataset, fingerprint
from jaxcifar.errors import UserError

_PIXELS = 3 * 32 * 32
_MOST_MEMBERS = 100  # of an archive; the official ones have at most ten


class File(NamedTuple):
    """One file of records.

    Attributes:
      name: without the ending, which is ".bin" in the binary format and "" in the Python format.
      records: how many images it holds.
      python_md5: the published MD5 of the file in the Python format. (None is published for the
        binary format.)
    """

    name: str
    records: int
    python_md5: str


class Release(NamedTuple):
    """One format in which the data set is published."""

    archive: str
    md5: str  # of the archive
    folder: str  # that the archive unpacks to


@dataclasses.dataclass(frozen=True)
class Spec:
    """What tells one data set of the CIFAR family from another.

    Attributes:
      name: the name in `jaxcifar.data.load`.
      title: the name in messages.
      classes: the class names in the order of the labels, separated by white space.
      mean, std: of the training pixels by channel, in units of 1 (pixel / 255).
      train, test: the files of each split, in the official order.
      label_bytes: how many label bytes precede the pixels of a binary record; the last one counts.
      label_key: of the labels in the pickled dict of the Python format.
      binary, python: the two published formats.
      builder: the class in `tensorflow_datasets.image_classification.cifar`.
      page: where the archives and their MD5s are published.
    """

    name: str
    title: str
    classes: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train: tuple[File, ...]
    test: tuple[File, ...]
    label_bytes: int
    label_key: bytes
    binary: Release
    python: Release
    builder: str
    page: str = "https://www.cs.toronto.edu/~kriz/cifar.html"

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.classes.split())

    def files(self, split: str) -> tuple[File, ...]:
        """Returns the files of "train" or "test"."""
        return {"train": self.train, "test": self.test}[split]


CIFAR10 = Spec(
    name="cifar10",
    title="CIFAR-10",
    classes="airplane automobile bird cat deer dog frog horse ship truck",
    # Of the 50,000 training images. A frequently copied wrong constant is 0.2023 for the first std.
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    train=(
        File("data_batch_1", 10_000, "c99cafc152244af753f735de768cd75f"),
        File("data_batch_2", 10_000, "d4bba439e000b95fd0a9bffe97cbabec"),
        File("data_batch_3", 10_000, "54ebc095f3ab1f0389bbae665268c751"),
        File("data_batch_4", 10_000, "634d18415352ddfa80567beed471001a"),
        File("data_batch_5", 10_000, "482c414d41f54cd18b22e5b47cb7c3cb"),
    ),
    test=(File("test_batch", 10_000, "40351d587109b95175f43aff81a1287e"),),
    label_bytes=1,
    label_key=b"labels",
    binary=Release(
        "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin"
    ),
    python=Release(
        "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"
    ),
    builder="Cifar10",
)

CIFAR100 = Spec(
    name="cifar100",
    title="CIFAR-100",
    classes="""
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
        crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house
        kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
        mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
        plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew
        skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
        telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf
        woman worm
    """,
    # Of the 50,000 training images. To five digits: 0.50708 0.48655 0.44092, and for the
    # standard deviation 0.26733 0.25644 0.27615.
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    train=(File("train", 50_000, "16019d7e3df5f24257cddd939b257f8d"),),
    test=(File("test", 10_000, "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
    label_bytes=2,  # the superclass, one of 20, then the class
    label_key=b"fine_labels",
    binary=Release(
        "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary"
    ),
    python=Release(
        "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python"
    ),
    builder="Cifar100",
)


def default_dir() -> pathlib.Path:
    """Returns `$JAXCIFAR_DATA`, else ~/.cache/jaxcifar/data."""
    folder = pathlib.Path(os.environ.get("JAXCIFAR_DATA") or "~/.cache/jaxcifar/data")
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{folder}: {error} Set HOME, or name the folder: --config.data.dir=FOLDER."
        ) from error


def load(spec: Spec, split: str, data_dir: str = "") -> Dataset:
    """Loads one split in the official order.

    Looks in `data_dir` for, in this order: the binary archive, the Python archive, the folder of
    the one, the folder of the other, the same files in `data_dir` itself; else lets
    tensorflow-datasets prepare the data set there, which downloads about 160 MB the first time.

    Args:
      spec: the data set, `CIFAR10` or `CIFAR100`.
      split: "train" or "test".
      data_dir: the folder; "" is `default_dir()`.

    Returns:
      A `Dataset`: images [N, 32, 32, 3] uint8, labels [N] int32.

    Raises:
      UserError: nothing there and no way to download; or files that are damaged.
    """
    folder = pathlib.Path(data_dir).expanduser() if data_dir else default_dir()
    if data_dir and not folder.is_dir():
        raise UserError(f"data.dir is {data_dir!r}, which is not a folder.")
    for release in (spec.binary, spec.python):
        if (folder / release.archive).is_file():
            return _from_archive(spec, release, folder / release.archive, split)
    names = [file.name + end for file in (*spec.train, *spec.test) for end in ("", ".bin")]
    for candidate in (folder / spec.binary.folder, folder / spec.python.folder, folder):
        if any((candidate / name).is_file() for name in names) or (
            candidate != folder and candidate.is_dir()
        ):
            return _from_folder(spec, candidate, split)
    return _from_tfds(spec, folder, split)


# --- archives and folders ---------------------------------------------------------------------


def _from_archive(spec: Spec, release: Release, path: pathlib.Path, split: str) -> Dataset:
    binary = release is spec.binary
    files = {_inside(file, binary): file for file in (*spec.train, *spec.test)}
    # What comes with them (a readme, the class names) takes a few kB.
    limit = sum(_largest(spec, file, binary) for file in files.values()) + 2**20
    try:
        content, md5 = _unpack(spec, path, limit)
        contents = _members(spec, content, files, binary, path)
        del content  # as large as the images, of which more copies are made below
    except UserError:
        raise
    except Exception as error:  # a damaged archive raises almost anything
        raise _damaged(spec, path, f"it cannot be read to its end ({error})") from error
    if missing := sorted(
        _inside(file, binary) for file in spec.files(split) if file not in contents
    ):
        raise UserError(
            f"{path} holds no {', '.join(missing)}: it is not the {spec.title} archive. "
            f"Download that from {spec.page}."
        )
    return _parse(spec, contents, split, binary, path, official=md5 == release.md5)


def _unpack(spec: Spec, path: pathlib.Path, limit: int) -> tuple[bytes, str]:
    """Returns the content of a .gz file, of `limit` bytes at most, and the MD5 of the file.

    Raises:
      UserError: there is more than that. Little more is read, however much it is.
      EOFError, OSError, zlib.error: the file is not gzip, ends early or has a wrong checksum.
    """
    too_long = f"it holds more than the {limit:,} bytes that {spec.title} takes"
    if path.stat().st_size > limit:
        raise _damaged(spec, path, too_long)
    with path.open("rb") as stream:
        md5 = hashlib.file_digest(stream, "md5").hexdigest()
        stream.seek(0)
        with gzip.open(stream) as unpacked:
            content = unpacked.read(limit + 1)  # to the end, where gzip compares its checksum
    if len(content) > limit:
        raise _damaged(spec, path, too_long)
    return content, md5


def _members(
    spec: Spec, content: bytes, files: dict[str, File], binary: bool, path: pathlib.Path
) -> dict[File, bytes]:
    """Returns the contents of those of `files` that are in a tar archive."""
    contents = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        for count, member in enumerate(archive, start=1):
            if count > _MOST_MEMBERS:
                raise _damaged(spec, path, f"it holds more than {_MOST_MEMBERS} files")
            name = pathlib.PurePosixPath(member.name).name
            if name in files and member.isfile() and (stream := archive.extractfile(member)):
                _require_size(spec, files[name], binary, member.size, f"{path}: {name}")
                contents[files[name]] = stream.read()
    return contents


def _from_folder(spec: Spec, folder: pathlib.Path, split: str) -> Dataset:
    everything = (*spec.train, *spec.test)
    binary = folder.name == spec.binary.folder or any(
        (folder / _inside(file, binary=True)).is_file() for file in everything
    )
    names = [_inside(file, binary) for file in everything]
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(
            f"{folder} holds only a part of {spec.title}: {', '.join(missing)} is missing. Unpack "
            f"the archive again, or point --config.data.dir at a folder with all of "
            f"{', '.join(names)}."
        )
    contents = {}
    for file in spec.files(split):
        path = folder / _inside(file, binary)
        _require_size(spec, file, binary, path.stat().st_size, f"{folder}: {path.name}")
        contents[file] = path.read_bytes()
    official = not binary and all(
        hashlib.md5(raw).hexdigest() == file.python_md5 for file, raw in contents.items()
    )
    return _parse(spec, contents, split, binary, folder, official)


def _inside(file: File, binary: bool) -> str:
    """Returns the file's name with its ending."""
    return file.name + ".bin" if binary else file.name


def _largest(spec: Spec, file: File, binary: bool) -> int:
    """Returns the bytes of a file in the binary format, or the most that it takes as a pickle."""
    if binary:
        return file.records * (spec.label_bytes + _PIXELS)
    # Protocol 2 as Python 3 writes it takes up to two bytes a pixel; the rest is file names.
    return file.records * 2 * _PIXELS + 2**20


def _require_size(spec: Spec, file: File, binary: bool, size: int, where: str) -> None:
    """Refuses a file of a wrong size, which is then never read into memory."""
    largest = _largest(spec, file, binary)
    if size > largest or (binary and size < largest):
        allowed = f"{largest:,}" if binary else f"at most {largest:,}"
        raise _damaged(spec, where, f"it has {size:,} bytes instead of {allowed}")


def _damaged(spec: Spec, where: str | pathlib.Path, what: str) -> UserError:
    return UserError(f"{where} is damaged: {what}. Download {spec.title} again from {spec.page}.")


def _parse(
    spec: Spec,
    contents: dict[File, bytes],
    split: str,
    binary: bool,
    source: pathlib.Path,
    official: bool,
) -> Dataset:
    parse = _parse_binary if binary else _parse_python
    parts = []
    for file in spec.files(split):
        parts.append(parse(spec, file, contents[file], f"{source}: {_inside(file, binary)}"))
    images, labels = zip(*parts, strict=True)
    return _dataset(spec, images, labels, split, str(source), official)


def _parse_binary(spec: Spec, file: File, raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    records = _records(spec, file, raw)
    labels = records[:, spec.label_bytes - 1].tolist()
    return _checked(spec, file, records[:, spec.label_bytes :], labels, where)


def _records(spec: Spec, file: File, raw: bytes) -> np.ndarray:
    """Returns [N, label_bytes + 3072] uint8: label bytes, then channel-planar pixels."""
    return np.frombuffer(raw, np.uint8).reshape(file.records, spec.label_bytes + _PIXELS)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and plain containers, and refuses to run anything else."""

    _ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "encode"})

    def find_class(self, module_name: str, global_name: str):
        if global_name in self._ALLOWED and module_name.split(".")[0] in ("numpy", "_codecs"):
            # The official files name numpy.core, which NumPy 2 moved.
            return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)
        raise pickle.UnpicklingError(f"refused to load {module_name}.{global_name}")


def _parse_python(spec: Spec, file: File, raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Parses a pickled dict of b"data" [N, 3072] uint8 and a list of labels."""
    try:
        batch = _ArraysOnly(io.BytesIO(raw), encoding="bytes").load()
        pixels, labels = batch[b"data"], batch[spec.label_key]
        labels = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
        if not isinstance(pixels, np.ndarray):
            raise TypeError(f"the pixels are a {type(pixels).__name__}, not an array")
    except Exception as error:  # a damaged pickle raises almost anything
        raise _damaged(spec, where, f"it cannot be unpickled ({error})") from error
    return _checked(spec, file, pixels, labels, where)


def _checked(
    spec: Spec, file: File, pixels: np.ndarray, labels: list[Any], where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Checks pixels [N, 3072], channel-planar, and N labels.

    Returns:
      Images [N, 32, 32, 3] in 0 … 255 and labels [N] int32.

    Raises:
      UserError: a wrong number of either, a wrong type or a value out of range.
    """
    if pixels.shape != (file.records, _PIXELS) or len(labels) != file.records:
        raise _damaged(
            spec,
            where,
            f"it has pixels of shape {pixels.shape} and {len(labels):,} labels instead of "
            f"{(file.records, _PIXELS)} and {file.records:,}",
        )
    if pixels.dtype.kind not in "iu":
        raise _damaged(spec, where, f"its pixels are of type {pixels.dtype}, not whole numbers")
    lowest, highest = pixels.min(), pixels.max()
    if lowest < 0 or highest > 255:
        raise _damaged(spec, where, f"its pixels are {lowest} to {highest}, not 0 to 255")
    last = len(spec.class_names) - 1
    for record, label in enumerate(labels):
        if not isinstance(label, int) or not 0 <= label <= last:
            raise _damaged(spec, where, f"record {record} has the label {label!r}, not 0 to {last}")
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, np.array(labels, np.int32)


def _dataset(
    spec: Spec,
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    split: str,
    source: str,
    official: bool,
) -> Dataset:
    pixels = np.ascontiguousarray(np.concatenate(images), np.uint8)
    classes = np.concatenate(labels).astype(np.int32)
    provenance = {
        "name": spec.name,
        "split": split,
        "source": source,
        "official": official,
        "images": len(classes),
        "sha256": fingerprint(pixels, classes),
    }
    return Dataset(pixels, classes, spec.class_names, provenance, spec.mean, spec.std)


# --- tensorflow-datasets ----------------------------------------------------------------------


def _from_tfds(spec: Spec, folder: pathlib.Path, split: str) -> Dataset:
    """Reads the data set as tfds prepares it; its download is checked by SHA-256."""
    # Here, not above: tfds takes seconds to import, and a local archive does not need it.
    import tensorflow_datasets as tfds

    builder = _tfds_builder(spec, folder)
    if not builder.is_prepared():
        _require_network(spec, folder)
        try:
            # Without a checksum to compare, tfds would download all the same.
            checked = tfds.download.DownloadConfig(force_checksums_validation=True)
            builder.download_and_prepare(download_config=checked)
        except Exception as error:  # tfds lets through what its HTTP client and disk raise
            raise UserError(
                f"tensorflow-datasets could not prepare {spec.title} in {folder}: {error}"
            ) from error
    # tfds shuffles as it writes; the id ("train_00042") is the place in the official order.
    records = sorted(builder.as_data_source(split=split), key=lambda record: record["id"])
    images = np.stack([record["image"] for record in records])
    labels = np.array([record["label"] for record in records])
    source = f"tensorflow-datasets in {folder}"
    return _dataset(spec, [images], [labels], split, source, official=True)


def _tfds_builder(spec: Spec, folder: pathlib.Path) -> Any:
    """Returns tfds' own builder, but for the function in which 4.9.10 needs TensorFlow.

    It opens the files through tf.io, and encodes arrays (but not PNG files) through TensorFlow.
    """
    from PIL import Image
    from tensorflow_datasets.image_classification import cifar

    original = getattr(cifar, spec.builder)
    files = {file.name: file for file in (*spec.train, *spec.test)}

    def png(image: np.ndarray) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG", compress_level=1)
        return stream.getvalue()

    class WithoutTensorFlow(original, skip_registration=True):  # pyright: ignore
        name = original.name

        def _generate_examples(
            self, split_prefix: str, filepaths: Iterable[str]
        ) -> Iterator[tuple[int, dict[str, object]]]:
            index = 0
            for path in map(pathlib.Path, filepaths):
                file = files[path.stem]
                _require_size(spec, file, binary=True, size=path.stat().st_size, where=str(path))
                for record in _records(spec, file, path.read_bytes()):
                    labels, pixels = np.split(record, [spec.label_bytes])
                    image = pixels.reshape(3, 32, 32).transpose(1, 2, 0)
                    example = {"id": f"{split_prefix}{index:05d}", "image": png(image)}
                    keys = self._cifar_info.label_keys
                    yield index, example | dict(zip(keys, labels.tolist(), strict=True))
                    index += 1

    return WithoutTensorFlow(data_dir=str(folder), file_format="array_record")


def _require_network(spec: Spec, folder: pathlib.Path) -> None:
    """Fails within seconds where the data set cannot be downloaded; tfds retries for minutes.

    Raises:
      UserError: the host cannot be reached.
    """
    host = urllib.parse.urlsplit(spec.page).hostname or ""
    failure: list[OSError] = [TimeoutError("no answer in 5 seconds")]

    def connect() -> None:
        try:
            socket.create_connection((host, 443), timeout=5).close()
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
            f"{spec.title} was not found, and cannot be downloaded ({host}: {error}).\n"
            f"Looked in {folder} for {spec.binary.archive}, {spec.python.archive}, "
            f"{spec.binary.folder}/, {spec.python.folder}/ and a copy prepared by "
            f"tensorflow-datasets.\nEither put one of the official archives ({spec.page}) there, "
            "or name the folder that has it: --config.data.dir=FOLDER or JAXCIFAR_DATA=FOLDER.\n"
            f"To try without {spec.title}: --config=configs/quickstart.py."
        ) from error
