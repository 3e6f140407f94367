"""CIFAR's own two formats, binary and pickled ("Python"), as an archive or a folder."""

import functools
import gzip
import hashlib
import io
import pathlib
import pickle
import re
import tarfile
from collections.abc import Collection
from typing import Any

import numpy as np

from jaxcifar.data.source import Read, Source, check_labels, damaged
from jaxcifar.data.spec import File, Release, Spec
from jaxcifar.errors import UserError, raise_temporary

PIXELS = 3 * 32 * 32


def find(spec: Spec, folder: pathlib.Path) -> list[Source]:
    """Returns the archives and folders of either format in `folder`, which may be one itself.

    The names are the official ones, those of torchvision (which are the same) and of Keras.
    """
    python, found = spec.python, []
    archives = {
        spec.binary.archive: spec.binary,
        python.archive: python,
        f"{python.folder}.tar.gz": python,  # Keras 2
        f"{python.folder}-target_archive": python,  # Keras 3
    }
    for name, release in archives.items():
        path = folder / name
        if path.is_file():
            found.append(Source(path, functools.partial(_from_archive, spec, release, path)))
    folders = (
        folder / spec.binary.folder,
        folder / python.folder,
        folder / python.folder / python.folder,  # unpacked into a folder of its own name
        folder / f"{python.folder}-target" / python.folder,  # Keras 3
        folder,
    )
    for candidate in folders:
        for binary in (True, False):
            names = [inside(file, binary) for file in (*spec.train, *spec.test)]
            missing = [name for name in names if not (candidate / name).is_file()]
            if len(missing) < len(names):
                read = functools.partial(_from_folder, spec, candidate, binary)
                found.append(Source(candidate, read, missing))
    return found


def unpack(
    spec: Spec, release: Release, path: pathlib.Path, wanted: Collection[str]
) -> tuple[dict[str, bytes], str]:
    """Returns the content of files in an archive, by their names there, and the archive's MD5.

    It is unpacked in memory, within limits: nothing is written.

    Raises:
      UserError: the archive is damaged, or lacks one of them.
    """
    binary = release is spec.binary
    files = {inside(file, binary): file for file in (*spec.train, *spec.test)}
    # What comes with them (a readme, the class names) takes a few kB.
    limit = sum(_largest(spec, file, binary) for file in files.values()) + 2**20
    contents = {}
    try:
        with gzip.open(path) as stream:
            content = stream.read(limit + 1)  # to the end, where gzip compares its checksum
        if len(content) > limit:
            raise damaged(spec, path, f"it holds more than the {limit:,} bytes of the images")
        with path.open("rb") as stream:
            md5 = hashlib.file_digest(stream, "md5").hexdigest()
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as members:
            for member in filter(tarfile.TarInfo.isfile, members):
                name = pathlib.PurePosixPath(member.name).name
                if name in files:
                    require_size(spec, files[name], binary, member.size, f"{path}: {name}")
                if name in wanted and (stream := members.extractfile(member)):
                    contents[name] = stream.read()
        del content  # as large as the images, of which more copies are made below
    except UserError:
        raise
    except Exception as error:  # a damaged archive raises almost anything
        raise_temporary(error, path)
        raise damaged(spec, path, f"it cannot be read to its end ({error})") from error
    if missing := sorted({*wanted} - contents.keys()):
        raise UserError(
            f"{path} lacks {', '.join(missing)}: it is not the {spec.title} archive. "
            f"Download it from {spec.page}."
        )
    return contents, md5


def _from_archive(spec: Spec, release: Release, path: pathlib.Path, split: str) -> Read:
    binary = release is spec.binary
    names = [inside(file, binary) for file in spec.files(split)]
    contents, md5 = unpack(spec, release, path, names)
    return _parse(spec, contents, split, binary, path, official=md5 == release.md5)


def _from_folder(spec: Spec, folder: pathlib.Path, binary: bool, split: str) -> Read:
    contents = {}
    for file in spec.files(split):
        path = folder / inside(file, binary)
        require_size(spec, file, binary, path.stat().st_size, f"{folder}: {path.name}")
        contents[path.name] = path.read_bytes()
    official = not binary and all(
        hashlib.md5(contents[file.name]).hexdigest() == file.python_md5
        for file in spec.files(split)
    )
    return _parse(spec, contents, split, binary, folder, official)


def inside(file: File, binary: bool) -> str:
    """Returns the file's name with its ending."""
    return file.name + ".bin" if binary else file.name


def _largest(spec: Spec, file: File, binary: bool) -> int:
    """Returns the bytes of a file in the binary format, or the most that it takes as a pickle."""
    if binary:
        return file.records * (spec.label_bytes + PIXELS)
    # Protocol 2 as Python 3 writes it takes up to two bytes a pixel; the rest is file names.
    return file.records * 2 * PIXELS + 2**20


def require_size(spec: Spec, file: File, binary: bool, size: int, where: str) -> None:
    """Refuses a file of the wrong size before it is read into memory."""
    largest = _largest(spec, file, binary)
    if size > largest or (binary and size < largest):
        allowed = f"{largest:,}" if binary else f"at most {largest:,}"
        raise damaged(spec, where, f"it has {size:,} bytes instead of {allowed}")


def _parse(
    spec: Spec,
    contents: dict[str, bytes],
    split: str,
    binary: bool,
    source: pathlib.Path,
    official: bool,
) -> Read:
    parse = _parse_binary if binary else _parse_python
    files = {inside(file, binary): file for file in spec.files(split)}
    parts = [parse(spec, file, contents[name], f"{source}: {name}") for name, file in files.items()]
    pixels, labels = map(np.concatenate, zip(*parts, strict=True))
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Read(np.ascontiguousarray(images, np.uint8), labels, official)


def _parse_binary(spec: Spec, file: File, raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    rows = records(spec, file, raw)
    labels = check_labels(spec, rows[:, spec.label_bytes - 1].tolist(), where)
    return rows[:, spec.label_bytes :], labels


def records(spec: Spec, file: File, raw: bytes) -> np.ndarray:
    """Returns [N, label_bytes + 3072] uint8: label bytes, then channel-planar pixels."""
    return np.frombuffer(raw, np.uint8).reshape(file.records, spec.label_bytes + PIXELS)


class _Dtype:
    """What a pickle says of a dtype."""

    def __init__(self, code: Any, *_: Any):
        self._code, self._order = _text(code), "="

    def __setstate__(self, state: Any) -> None:
        order = _text(state[1])
        self._order = order if order in "<>" else "="

    def numpy(self) -> np.dtype:
        if not re.fullmatch("[biuf][1248]", self._code):
            raise pickle.UnpicklingError(f"refused to load an array of {self._code!r}")
        return np.dtype(self._code).newbyteorder(self._order)


class _Array:
    """What a pickle says of an array."""

    def __init__(self, *made_of: Any):
        self._made_of = made_of

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, raw = state
        self._made_of = raw, dtype, shape, "F" if by_columns else "C"

    def numpy(self) -> np.ndarray:
        raw, dtype, shape, order = self._made_of
        return np.frombuffer(raw, dtype.numpy()).reshape(shape, order=_text(order))


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value


class _ArraysOnly(pickle.Unpickler):
    """Unpickles arrays of numbers and plain containers, and refuses anything else.

    It never calls what a pickle names. Even NumPy's own functions can be made to take any bytes for
    the addresses of objects, so stand-ins note what an array is made of, and `_Array.numpy` makes
    it.
    """

    def find_class(self, module_name: str, global_name: str):
        if module_name.split(".")[0] == "numpy":  # numpy.core, which NumPy 2 moved
            if global_name in ("_reconstruct", "ndarray", "_frombuffer"):
                return _Array
            if global_name == "dtype":
                return _Dtype
            if global_name == "scalar":
                return lambda dtype, raw: np.frombuffer(raw, dtype.numpy())[0].item()
        if (module_name, global_name) == ("_codecs", "encode"):  # of bytes, as Python 3 writes them
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"refused to load {module_name}.{global_name}")


def _parse_python(spec: Spec, file: File, raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Parses a pickled dict of "data" [N, 3072] uint8 and a list of labels.

    The keys are bytes in the official files, text in those that were pickled again.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(raw), encoding="bytes").load()
        batch = {key.encode() if isinstance(key, str) else key: batch[key] for key in batch}
        pixels, labels = (
            value.numpy() if isinstance(value, _Array) else value
            for value in (batch[b"data"], batch[spec.label_key])
        )
        pixels = np.asarray(pixels)
        labels = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
        if pixels.shape != (file.records, PIXELS) or len(labels) != file.records:
            found = f"it has pixels of shape {pixels.shape} and {len(labels):,} labels"
            raise damaged(spec, where, f"{found} instead of {file.records:,} records")
        if pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
            raise damaged(spec, where, f"its pixels, {pixels.dtype}, are not from 0 to 255")
        return pixels, check_labels(spec, labels, where)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise damaged(spec, where, f"it cannot be unpickled ({error})") from error
