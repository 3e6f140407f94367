"""Unpacks archives from elsewhere: in memory, so that nothing is written, and within limits."""

import gzip
import hashlib
import io
import pathlib
import tarfile
from collections.abc import Collection, Iterator
from typing import IO

_MOST_MEMBERS = 100  # the official archives have at most ten


class BadArchive(Exception):
    """An archive with something in it that should not be there; the message says what."""


def unpack(path: pathlib.Path, limit: int) -> tuple[bytes, str]:
    """Returns the content of a .gz file, of `limit` bytes at most, and the MD5 of the file.

    Raises:
      BadArchive: there is more than that; reading stops soon after.
      EOFError, OSError, zlib.error: the file is not gzip, ends early or has a wrong checksum.
    """
    too_long = f"it holds more than the {limit:,} bytes that the images take"
    if path.stat().st_size > limit:
        raise BadArchive(too_long)
    with path.open("rb") as stream:
        md5 = hashlib.file_digest(stream, "md5").hexdigest()
        stream.seek(0)
        with gzip.open(stream) as unpacked:
            content = unpacked.read(limit + 1)  # to the end, where gzip compares its checksum
    if len(content) > limit:
        raise BadArchive(too_long)
    return content, md5


def members(content: bytes, names: Collection[str]) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yields (name, size in bytes, open stream) of each file in a tar archive that `names` has.

    The name is without the folder. `content` is the tar archive itself, unpacked by `unpack`.

    Raises:
      BadArchive: a member is neither a file nor a folder, lies outside the archive's own folder, or
        is there twice; or there are too many.
      tarfile.TarError, RecursionError: the archive ends early or is damaged.
    """
    seen = set()
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        for count, member in enumerate(archive, start=1):
            path = pathlib.PurePosixPath(member.name)
            if count > _MOST_MEMBERS:
                raise BadArchive(f"it holds more than {_MOST_MEMBERS} files")
            if path.is_absolute() or ".." in path.parts:
                raise BadArchive(f"its member {member.name!r} lies outside its folder")
            if not (member.isfile() or member.isdir()):
                kind = "a link" if member.issym() or member.islnk() else "a device"
                raise BadArchive(f"its member {member.name!r} is {kind}, not a file")
            if path.name in seen:
                raise BadArchive(f"it holds {path.name} twice")
            if path.name in names and (stream := archive.extractfile(member)):
                seen.add(path.name)
                yield path.name, member.size, stream
