"""How many seeds would decide a comparison, if effect and spread are as they were found."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats

POWER = 0.8  # the chance that so many seeds decide it
MOST = 100  # seeds; more is "> 100"
_LEAST_EPOCHS = 8  # from which a spread can be guessed


def seeds_needed(effect_of: Callable[[int], Any], decided: Callable[[Any], bool]) -> int | None:
    """Returns the least number of seeds a row that decides a comparison with a chance of `POWER`.

    That is where the interval would still lie wholly on one side if the mean were nearer to the
    bound by z standard errors, z being the standard normal's quantile at `POWER`.

    Args:
      effect_of: returns the effect (see `experiments.runs.stats`) that n seeds would have.
      decided: whether an effect's interval decides the comparison.

    Returns:
      None where `MOST` seeds are not enough.
    """
    z = float(scipy.stats.norm.ppf(POWER))
    for n in range(2, MOST + 1):
        effect = effect_of(n)
        if decided(effect._replace(half=effect.half + z * effect.error)):
            return n
    return None


def imagined(mean: float, std: float, n: int) -> np.ndarray:
    """Returns n values [n] of just this mean and (unbiased) standard deviation, for n ≥ 2."""
    values = np.linspace(-1, 1, n)
    return mean + std * values / np.std(values, ddof=1)


def spread_between_epochs(values: Sequence[float]) -> float | None:
    """Guesses the standard deviation between seeds from one run.

    It is that between consecutive epochs of the second half, taken from their differences, which a
    trend hardly changes: √(mean(d²)/2), von Neumann et al. 1941. Seeds may well differ by more,
    above all where the learning rate has decayed.

    Args:
      values: a quantity after each epoch.

    Returns:
      None where there are fewer than eight epochs.
    """
    if len(values) < _LEAST_EPOCHS:
        return None
    changes = np.diff(values[len(values) // 2 :])
    return float(np.sqrt(np.mean(np.square(changes)) / 2))
