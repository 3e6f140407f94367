"""Errors that the user can fix: one message, and no traceback."""

import contextlib
import difflib
import errno
import os
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """An error that the user can fix, in a config, a command or a file; its message says how.

    Commands print the message without a traceback, and exit with code 2.

    Attributes:
      agreed: whether all processes of the run raise it together.
    """

    agreed = False


class Busy(UserError):
    """Another process is working on this; later it may be free, or done."""


class Temporary(UserError):
    """A file could not be read or written, for a reason that may pass: try the same again later."""


class Interrupted(Exception):
    """A signal stopped the work, which was saved; the same command resumes it.

    Attributes:
      agreed: whether all processes of the run raise it together.
    """

    agreed = False

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


# What a file server, or a machine without free memory, may answer for a while.
TEMPORARY = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
}


def of_file(error: OSError, path: object = "") -> UserError:
    """Returns an error of the file system as a `UserError` that gives the path and the reason.

    It is `Temporary` if the reason may pass. `path` is used if the error itself names none, as for
    a failed write.
    """
    where, kind = error.filename or path, Temporary if error.errno in TEMPORARY else UserError
    return kind(f"{where}: {error.strerror or error}." if where else f"{error}.")


def raise_temporary(error: BaseException, path: object = "") -> None:
    """Raises `Temporary` for an error that may pass, and so says nothing about what was read."""
    if isinstance(error, OSError) and error.errno in TEMPORARY:
        raise of_file(error, path) from error


def in_short(error: BaseException) -> str:
    """Returns the first line of an error, shortened for use within a message."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].partition(' See full')[0][:200]}".removesuffix(": ")


def note(text: str) -> None:
    """Tells the user, in a line on stderr, what was found and what is done about it."""
    if sys.stderr is None:  # it was closed, and print would write to stdout
        return
    try:
        print(f"jaxcifar: {printable(text)}", file=sys.stderr, flush=True)
    except OSError:  # the terminal is gone
        unread(sys.stderr)


def printable(text: str) -> str:
    """Returns a text in which no character but a line's end controls a terminal.

    What a message repeats may be of a file from elsewhere.
    """
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "?" for c in text
    )


def unread(stream: Any) -> None:
    """Lets what is still written to a stream go nowhere, since whoever read it is gone."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no file, as in a notebook
        place = stream.fileno()
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), place)


def nearest(value: str, allowed: Iterable[str]) -> str:
    """Returns ' Did you mean …?' for the name in `allowed` closest to `value`, else ''."""
    close = difflib.get_close_matches(str(value), list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def choose(what: str, value: str, allowed: Iterable[str]) -> str:
    """Returns `value` if it is one of `allowed`.

    Raises:
      UserError: it is not; the message gives the value, the nearest name and all allowed ones.
    """
    names = list(allowed)
    if value not in names:
        raise UserError(f"{what} is {value!r}.{nearest(value, names)} Allowed: {', '.join(names)}.")
    return value
