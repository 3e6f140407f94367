"""Whether a measurement that is resumed is the one that was begun."""

import pathlib
from typing import Any

from jaxcifar.config import differences
from jaxcifar.errors import UserError


def check_same(path: pathlib.Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Checks that what is to be measured is what was measured before.

    Args:
      path: of the measurements.
      there, here: their settings, and those asked for; both flat.

    Raises:
      UserError: it is not.
    """
    if changed := differences(there, here):
        listed = "\n  ".join(changed)
        raise UserError(
            f"{path} contains measurements with other settings (there -> here):\n  {listed}\nUse "
            "the same values to resume them, or another --out."
        )
