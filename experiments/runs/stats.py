"""Means over seeds, differences between them, and their 95% intervals."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

Sample = Sequence[float] | np.ndarray  # a value of each run


class Estimate(NamedTuple):
    """A mean over runs. With one run there is no spread: `std` and `half` are NaN."""

    mean: float
    std: float  # of the runs, from the unbiased variance
    half: float  # half the width of the 95% confidence interval of the mean, by Student's t
    n: int


class Contrast(NamedTuple):
    """A weighted sum of means. With one run in a group, `half` is NaN."""

    mean: float
    half: float  # half the width of the 95% confidence interval of `mean`
    n: int  # runs in the smallest group


# All three take many samples of the same size at once, [..., n]; the fields are then arrays [...].


def estimate(values: Sample) -> Estimate:
    """Returns the mean of independent values and its 95% confidence interval."""
    values = np.asarray(values, float)
    n = values.shape[-1]
    mean = _plain(values.mean(-1)) if n else math.nan
    if n < 2:
        return Estimate(mean, math.nan, math.nan, n)
    # The mean of equal values may be rounded, and they would then seem to vary.
    std = np.where(np.ptp(values, -1) == 0, 0.0, values.std(-1, ddof=1))
    half = scipy.stats.t.ppf(0.975, n - 1) * std / math.sqrt(n)
    return Estimate(mean, _plain(std), _plain(half), n)


def difference(ours: Sample, others: Sample) -> Contrast:
    """Returns mean(ours) − mean(others) and its 95% interval by Welch's t; NaN with one value."""
    return contrast((1, ours), (-1, others))


def contrast(*terms: tuple[Any, Sample]) -> Contrast:
    """Returns Σ c · mean(values) over independent groups, and its 95% interval.

    The interval is Student's t with the degrees of freedom of Welch (1947) and Satterthwaite
    (1946); NaN where a group has one value.
    """
    groups = [(factor, estimate(values)) for factor, values in terms]
    mean, n = _plain(sum(c * group.mean for c, group in groups)), min(g.n for _, g in groups)
    if n < 2:
        return Contrast(mean, math.nan, n)
    variances = [np.square(c * group.std) / group.n for c, group in groups]
    squared = np.sum(variances, axis=0)
    known = squared > 0  # else all values of each group are equal
    parts = [v**2 / (group.n - 1) for v, (_, group) in zip(variances, groups, strict=True)]
    freedom = np.divide(squared**2, np.sum(parts, axis=0), where=known, out=np.ones_like(squared))
    half = np.where(known, scipy.stats.t.ppf(0.975, freedom) * np.sqrt(squared), 0.0)
    return Contrast(mean, _plain(half), n)


def _plain(value: Any) -> Any:
    """A number as a float; arrays as they are."""
    return float(value) if np.ndim(value) == 0 else value


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the mean of each `window` consecutive values: [n - window + 1]."""
    return np.lib.stride_tricks.sliding_window_view(values, window).mean(-1)
