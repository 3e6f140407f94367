"""The lock of a run's folder: one run writes there, and all of its processes see it."""

import contextlib
import errno
import fcntl
import os
import pathlib
import time
from collections.abc import Generator
from typing import Any

from jaxcifar import processes
from jaxcifar.errors import Busy, UserError, raise_temporary
from jaxcifar.run import signs

_DELETED = "Another process has just deleted {}. Start again."


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Generator[None]:
    """Creates `workdir` and locks it, so that no two runs write to it at the same time.

    Both the file .lock and the folder itself are locked. The folder's lock keeps others out even if
    the file is deleted, but network file systems lock only files. Folders that were created here
    are deleted at the end if nothing was written to them.

    Raises:
      Busy: another process holds the lock, or has just deleted the folder.
      UserError: the folder cannot be written to, or its file system cannot lock files.
    """
    made = [path for path in (workdir, *workdir.parents) if not path.exists()]
    with contextlib.ExitStack() as stack:
        there = False
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            there = True
            file = stack.enter_context((workdir / ".lock").open("a"))
            folder = os.open(workdir, os.O_RDONLY)
            stack.callback(os.close, folder)
        except OSError as error:
            if workdir.is_symlink() and not workdir.exists():
                raise UserError(
                    f"The workdir {workdir} is a link to {os.readlink(workdir)}, which is missing."
                ) from error
            raise_temporary(error, workdir)
            if there and isinstance(error, FileNotFoundError):
                raise Busy(_DELETED.format(workdir)) from error
            raise UserError(f"The workdir {workdir} cannot be written to: {error}.") from error
        for held in (file, folder):
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno == errno.EWOULDBLOCK:
                    linked = held is file and os.fstat(file.fileno()).st_nlink > 1
                    copied = (  # as by `cp -al`
                        ", or in a folder of which this is a hard-linked copy that would share "
                        "its logs (copy with cp -a)"
                    )
                    raise Busy(
                        f"Another process is training in {workdir}{copied if linked else ''}. "
                        "Wait for it, or choose another --workdir."
                        + (f" It is {silent}" if (silent := signs.silent(workdir)) else "")
                    ) from error
                raise_temporary(error, workdir)
                if held is file:
                    raise UserError(
                        f"The file system of {workdir} cannot lock files ({error.strerror}), so "
                        "two runs could write there at once. Choose a --workdir elsewhere, or "
                        "have it mounted with locks (Lustre: -o flock)."
                    ) from error
            stack.callback(_unlock, held)
        if not (_is_still(file.fileno(), workdir / ".lock") and _is_still(folder, workdir)):
            # The run that held the lock wrote nothing, and has deleted what was opened here.
            raise Busy(_DELETED.format(workdir))
        stack.callback(_delete_if_empty, made)
        signs.clear(workdir)
        yield


def _unlock(held: Any) -> None:
    """Releases a lock, which closing leaves to a process that was forked meanwhile."""
    with contextlib.suppress(OSError):  # the file server may be gone
        fcntl.flock(held, fcntl.LOCK_UN)


def _is_still(opened: int, path: pathlib.Path) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(opened), path.stat())
    except OSError:
        return False


def _delete_if_empty(made: list[pathlib.Path]) -> None:
    """Deletes a folder that contains only .lock, and the parents that were created with it."""
    with contextlib.suppress(OSError):  # a folder is not empty
        for path in made:
            if path is made[0] and os.listdir(path) == [".lock"]:
                (path / ".lock").unlink()
            path.rmdir()


def check_shared(workdir: pathlib.Path) -> None:
    """Checks that all processes of a run see the folder that the first one locked.

    Raises:
      UserError: one of them sees another folder.
    """
    for process, sees in enumerate(see(workdir / ".lock")):
        if not sees:
            raise UserError(
                f"The workdir {workdir} of process {process} is not the same folder as that of "
                "process 0. All processes of a run need a folder on a file system that they share."
            )


def see(file: pathlib.Path) -> list[bool]:
    """Returns whether each process of a run sees the same `file`, which the first writes to."""
    if processes.count() == 1:
        return [True]
    mark = processes.share(lambda: _mark(file))
    return processes.gather(_sees(file, mark))


def _mark(path: pathlib.Path) -> str:
    mark = os.urandom(16).hex()
    path.write_text(mark)
    return mark


def _sees(path: pathlib.Path, mark: str) -> bool:
    for _ in range(20):  # a network file system may take a moment
        with contextlib.suppress(OSError):
            if path.read_text() == mark:
                return True
        time.sleep(0.25)
    return False
