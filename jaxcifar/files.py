"""Atomic writes: nobody reads half a file, even after a kill, a full disk or a power cut."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import stat
import uuid
from collections.abc import Callable, Generator, Iterator
from typing import Any


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file by `replacing`."""
    replace(path, json.dumps(content, indent=2) + "\n")


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
      OSError: it cannot be read.
      ValueError: it is not JSON, or is nested too deeply.
    """
    return _loads(path.read_text(encoding="utf-8"))


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads a file of JSON lines; [] if there is none. A half-written last line is ignored.

    Raises:
      ValueError: a line is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [_loads(line) for line in lines[:-1] if line]  # a whole line ends with \n


def walk(
    top: pathlib.Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[pathlib.Path, list[str], list[str]]]:
    """Yields each folder from `top` on, with the names of its folders and its files, sorted.

    Links are followed, to each folder once, and under its own name if that is below `top` too.

    Args:
      top: a folder.
      onerror: is called with the error of a folder that cannot be read.

    Yields:
      (path, folders, files); those taken out of `folders` are not visited.
    """
    seen, tops = set(), [str(top)]
    for start in tops:  # which grows
        for path, folders, files in os.walk(start, onerror=onerror):
            real = os.path.realpath(path)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            yield pathlib.Path(path), folders, sorted(files)
            linked = (os.path.join(path, name) for name in folders)
            tops += [folder for folder in linked if os.path.islink(folder)]


def replace(path: pathlib.Path, text: str) -> None:
    """Writes a file by `replacing`."""
    with replacing(path) as temporary:
        # A name or value of another system may hold what UTF-8 cannot.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_shared(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file that other processes may write at the same time; the last one wins."""
    with replacing(path, uuid.uuid4().hex) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def replacing(path: pathlib.Path, mark: str = "") -> Generator[pathlib.Path]:
    """Yields the path of a file to write, which then replaces the one at `path`.

    No reader, full disk, kill or power cut ever leaves half of it.

    Args:
      path: the file to replace; the one to write has its suffix and, in the end, its mode.
      mark: part of the name of the one to write, if several processes may write at the same time.

    Raises:
      OSError: it cannot be written. The error names `path`, whose content is unchanged.
    """
    temporary = path.with_name(f"{path.stem}.{mark}tmp{path.suffix}")
    try:
        temporary.unlink(missing_ok=True)  # where it is a link, its target would be written
        yield temporary
        with contextlib.suppress(OSError):  # there was none, or the file system keeps no modes
            temporary.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_IWUSR)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        error.filename = str(path)  # the error of a full disk does not name the file
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def append(path: pathlib.Path, line: str) -> None:
    """Appends a line to a file, and syncs it to the disk.

    Raises:
      OSError: it cannot be written. The error names the path.
    """
    try:
        with path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)
        raise


def sync(path: pathlib.Path) -> None:
    """Syncs a file, or the names in a folder, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        # Some file systems, such as folders shared with a virtual machine, have nothing to sync.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(opened)


def file_digest(path: pathlib.Path) -> str | None:
    """Returns the SHA-256 of a file; None if there is none, or a folder in its place."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return None
