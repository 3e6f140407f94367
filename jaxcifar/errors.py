"""How a command ends early: an error the user can fix, or a signal; each with one message."""

import contextlib
import difflib
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from absl import logging


class UserError(ValueError):
    """An error the user can fix, in a config, a command or a file: one message that says how.

    The commands print it without a traceback and exit with code 2.
    """


class Busy(UserError):
    """Another process works on it now; it may be free, or done, later."""


class Interrupted(Exception):
    """The work was stopped by a signal and saved; the same command resumes it."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


def of_file(error: OSError, path: object = "") -> UserError:
    """Returns the error of a file or folder as one that the user can fix: its path and reason.

    Where the error does not know the path, as that of a write does not, it is `path`.
    """
    where = error.filename or path
    return UserError(f"{where}: {error.strerror or error}." if where else f"{error}.")


def in_short(error: Exception) -> str:
    """Returns the first line of an error, as far as a message has room for it."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].partition(' See full')[0][:200]}".removesuffix(": ")


def note(text: str) -> None:
    """Tells the user, in a line of stderr, what was found wrong and mended."""
    print(f"jaxcifar: {text}", file=sys.stderr, flush=True)


class Stop:
    """A wish that the work ends at the next place where it can be saved; true once there is one.

    Attributes:
      signum: the signal it came from; 0 for another reason.
      reason: why, in a few words.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.reason = ""

    def __bool__(self) -> bool:
        return bool(self.reason)

    def request(self, reason: str, signum: int = 0) -> None:
        """Asks for the end; the first reason is kept."""
        if not self:
            self.signum, self.reason = signum, reason


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@contextlib.contextmanager
def interruptible() -> Iterator[Stop]:
    """Turns signals into a wish to stop, while the context lasts.

    SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 (schedulers send the last ones before a time limit)
    ask for the end. Schedulers repeat SIGTERM: that does not cut the saving short. A second SIGINT
    (Ctrl-C) does. A signal that was ignored before, as nohup does with SIGHUP, stays so. Where one
    such context is within another, both wish to stop.
    """
    handler = _Handler(Stop())
    with contextlib.suppress(ValueError):  # not in the main thread: whoever runs it handles them
        for signum in _SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                handler.before[signum] = signal.signal(signum, handler)
    try:
        yield handler.stop
    finally:
        for signum, previous in handler.before.items():
            signal.signal(signum, previous)


class _Handler:
    def __init__(self, stop: Stop):
        self.stop = stop
        self.before: dict[int, Any] = {}  # the handlers whose place it took

    def __call__(self, signum: int, frame: object) -> None:
        if signum == signal.SIGINT:
            signal.signal(signum, self.before[signum])
        self.stop.request(f"by {signal.Signals(signum).name}", signum)
        if isinstance(outer := self.before.get(signum), _Handler):
            outer(signum, frame)


def reason(error: Exception) -> str:
    """Returns the words of an error that absl or ml_collections raised for a flag."""
    # ml_collections wraps a KeyError that knows the nearest name in an AttributeError.
    if error.args and isinstance(error.args[0], KeyError):
        error = error.args[0]
    return str(error.args[0] if isinstance(error, KeyError) else error)


def exit_code(command: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit code.

    That is what it returns (None: 0), or 2 after a `UserError` or an `OSError`, or 128 + the
    signal's number after `Interrupted`. The message is printed to stderr.
    """
    logging.set_verbosity(logging.ERROR)  # Orbax logs every save
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a notebook or a test took its place
            stream.reconfigure(errors="replace")  # pyright: ignore # an ASCII terminal shows "?"
    try:
        return command() or 0
    except (UserError, Interrupted) as error:
        print(f"jaxcifar: {error}", file=sys.stderr)
        return 128 + error.signum if isinstance(error, Interrupted) else 2
    except OSError as error:  # a full disk, no permission, a folder where a file is expected
        print(f"jaxcifar: {of_file(error)}", file=sys.stderr)
        return 2


def nearest(value: str, allowed: Iterable[str]) -> str:
    """Returns ' Did you mean …?' for the name in `allowed` closest to `value`, else ''."""
    close = difflib.get_close_matches(str(value), list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def choose(what: str, value: str, allowed: Iterable[str]) -> str:
    """Returns `value` when it is one of `allowed`.

    Raises:
      UserError: it is not; the message names the value, the nearest name and all allowed ones.
    """
    names = list(allowed)
    if value not in names:
        raise UserError(f"{what} is {value!r}.{nearest(value, names)} Allowed: {', '.join(names)}.")
    return value
