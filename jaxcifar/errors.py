"""The one exception for mistakes a user can mend, and the words it is built from."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in a config, a command or a file: one message that says the way out.

    `python -m jaxcifar.main` prints it without a traceback and exits with code 2.
    """


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
