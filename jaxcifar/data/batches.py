"""CIFAR's own two formats, binary and pickled ("Python"), as an archive or a folder."""

import functools
import hashlib
import io
import pathlib
import pickle
from collections.abc import Collection

import numpy as np

from jaxcifar.data import archive
from jaxcifar.data.source import PIXELS, Read, Source, check, damaged
from jaxcifar.data.spec import File, Release, Spec
from jaxcifar.errors import UserError


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
            empty = len(missing) == len(names)
            own_name = (spec.binary if binary else spec.python).folder == candidate.name
            if not empty or (own_name and candidate.is_dir()):
                read = functools.partial(_from_folder, spec, candidate, binary)
                found.append(Source(candidate, read, missing, empty))
    return found


def unpack(
    spec: Spec, release: Release, path: pathlib.Path, wanted: Collection[str]
) -> tuple[dict[str, bytes], str]:
    """Returns the content of files in an archive, by their names there, and the archive's MD5.

    Raises:
      UserError: the archive is damaged, or lacks one of them.
    """
    binary = release is spec.binary
    files = {inside(file, binary): file for file in (*spec.train, *spec.test)}
    # What comes with them (a readme, the class names) takes a few kB.
    limit = sum(_largest(spec, file, binary) for file in files.values()) + 2**20
    contents = {}
    try:
        content, md5 = archive.unpack(path, limit)
        for name, size, stream in archive.members(content, {*files, *wanted}):
            if name in files:
                require_size(spec, files[name], binary, size, f"{path}: {name}")
            if name in wanted:
                contents[name] = stream.read()
        del content  # as large as the images, of which more copies are made below
    except UserError:
        raise
    except archive.BadArchive as error:
        raise damaged(spec, path, str(error)) from error
    except Exception as error:  # a damaged archive raises almost anything
        raise damaged(spec, path, f"it cannot be read to its end ({error})") from error
    if missing := sorted({*wanted} - contents.keys()):
        raise UserError(
            f"{path} lacks {', '.join(missing)}: it is not the {spec.title} archive. "
            f"Download that from {spec.page}."
        )
    return contents, md5


def _from_archive(spec: Spec, release: Release, path: pathlib.Path, split: str) -> Read:
    binary = release is spec.binary
    names = {file: inside(file, binary) for file in spec.files(split)}
    found, md5 = unpack(spec, release, path, names.values())
    contents = {file: found[name] for file, name in names.items()}
    return _parse(spec, contents, split, binary, path, official=md5 == release.md5)


def _from_folder(spec: Spec, folder: pathlib.Path, binary: bool, split: str) -> Read:
    contents = {}
    for file in spec.files(split):
        path = folder / inside(file, binary)
        require_size(spec, file, binary, path.stat().st_size, f"{folder}: {path.name}")
        contents[file] = path.read_bytes()
    official = not binary and all(
        hashlib.md5(raw).hexdigest() == file.python_md5 for file, raw in contents.items()
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
    contents: dict[File, bytes],
    split: str,
    binary: bool,
    source: pathlib.Path,
    official: bool,
) -> Read:
    parse = _parse_binary if binary else _parse_python
    parts = [
        parse(spec, file, contents[file], f"{source}: {inside(file, binary)}")
        for file in spec.files(split)
    ]
    images, labels = zip(*parts, strict=True)
    pixels = np.ascontiguousarray(np.concatenate(images), np.uint8)
    return Read(pixels, np.concatenate(labels), official)


def _parse_binary(spec: Spec, file: File, raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    rows = records(spec, file, raw)
    labels = rows[:, spec.label_bytes - 1].tolist()
    return check(spec, file.records, rows[:, spec.label_bytes :], labels, where)


def records(spec: Spec, file: File, raw: bytes) -> np.ndarray:
    """Returns [N, label_bytes + 3072] uint8: label bytes, then channel-planar pixels."""
    return np.frombuffer(raw, np.uint8).reshape(file.records, spec.label_bytes + PIXELS)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and plain containers, and refuses to run anything else."""

    # An array is made by the first three, by protocol 5 with _frombuffer; a NumPy number by scalar.
    _ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "_frombuffer", "scalar", "encode"})

    def find_class(self, module_name: str, global_name: str):
        if global_name in self._ALLOWED and module_name.split(".")[0] in ("numpy", "_codecs"):
            # The official files name numpy.core, which NumPy 2 moved.
            return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)
        raise pickle.UnpicklingError(f"refused to load {module_name}.{global_name}")


def _parse_python(spec: Spec, file: File, raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Parses a pickled dict of "data" [N, 3072] uint8 and a list of labels.

    The keys are bytes in the official files, text in those that were pickled again.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(raw), encoding="bytes").load()
        batch = {key.encode() if isinstance(key, str) else key: batch[key] for key in batch}
        pixels, labels = batch[b"data"], batch[spec.label_key]
        if isinstance(labels, np.ndarray) and labels.size != file.records:
            # Before an array of any size becomes a list.
            raise ValueError(f"it has {labels.size:,} labels instead of {file.records:,}")
        labels = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
        if not isinstance(pixels, np.ndarray):
            raise TypeError(f"the pixels are a {type(pixels).__name__}, not an array")
        return check(spec, file.records, pixels, labels, where)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise damaged(spec, where, f"it cannot be unpickled ({error})") from error
