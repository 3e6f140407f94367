"""How many seeds would decide a comparison, if effect and spread are as they were found."""

import bisect
import functools
from collections.abc import Callable, Sequence

import numpy as np

POWER = 0.8  # the chance that so many seeds decide it
MOST = 100  # seeds; more is "> 100"
_DRAWS = 4000  # of each number of seeds: the chance is then known to within about 0.6%
_LEAST_EPOCHS = 8  # from which a spread can be guessed


def seeds_needed(chance_of: Callable[[int], float]) -> int | None:
    """Returns the least number of seeds a row that decides a comparison with a chance of `POWER`.

    Args:
      chance_of: returns the chance of n seeds, which grows with n.

    Returns:
      None where `MOST` seeds are not enough.
    """
    counts = range(MOST + 1)
    n = bisect.bisect_left(counts, True, lo=2, key=lambda n: chance_of(n) >= POWER)
    return n if n in counts else None


def imagined(mean: float, std: float, n: int, stream: int) -> np.ndarray:
    """Returns `_DRAWS` samples of n normal values, [_DRAWS, n].

    Args:
      mean, std: of the distribution.
      n: at most `MOST`.
      stream: which random numbers to take; those of different streams are independent, and the
        first values of a larger sample are those of a smaller one.
    """
    return mean + std * _normal(stream)[:, :n]


@functools.lru_cache(maxsize=16)
def _normal(stream: int) -> np.ndarray:
    return np.random.default_rng(stream).standard_normal((_DRAWS, MOST))


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
