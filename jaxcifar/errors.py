"""How a command ends early: a mistake a user can mend, or a signal; each with one message."""

import difflib
import sys
from collections.abc import Callable, Iterable

from absl import logging


class UserError(ValueError):
    """A mistake in a config, a command or a file: one message that says the way out.

    The commands print it without a traceback and exit with code 2.
    """


class Interrupted(Exception):
    """The work was stopped by a signal and saved; the same command resumes it."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


def reason(error: Exception) -> str:
    """Returns the words of an error that absl or ml_collections raised for a flag."""
    # ml_collections wraps a KeyError that knows the nearest name in an AttributeError.
    if error.args and isinstance(error.args[0], KeyError):
        error = error.args[0]
    return str(error.args[0] if isinstance(error, KeyError) else error)


def exit_code(command: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit code.

    That is what it returns (None: 0), or 2 after a `UserError`, or 128 + the signal's number after
    `Interrupted`, whose message is printed to stderr.
    """
    logging.set_verbosity(logging.ERROR)  # Orbax tells of every save
    try:
        return command() or 0
    except (UserError, Interrupted) as error:
        print(f"jaxcifar: {error}", file=sys.stderr)
        return 128 + error.signum if isinstance(error, Interrupted) else 2


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
