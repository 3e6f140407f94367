"""Means over seeds, differences between them, and their 95% intervals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats


class Estimate(NamedTuple):
    """A mean over runs. With one run there is no spread: `std` and `half` are NaN."""

    mean: float
    std: float  # of the runs, from the unbiased variance
    half: float  # of the 95% confidence interval of the mean, by Student's t
    n: int

    @property
    def error(self) -> float:
        """The standard error of `mean`."""
        return self.std / math.sqrt(self.n)


class Contrast(NamedTuple):
    """A weighted sum of means. With one run in a group, `error` and `half` are NaN."""

    mean: float
    error: float  # the standard error of `mean`
    half: float  # of the 95% confidence interval of `mean`
    n: int  # runs in the smallest group


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean of independent values and its 95% confidence interval."""
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    if n < 2:
        return Estimate(mean, math.nan, math.nan, n)
    std = float(np.std(values, ddof=1))
    return Estimate(mean, std, float(scipy.stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n), n)


def difference(ours: Sequence[float], others: Sequence[float]) -> Contrast:
    """Returns mean(ours) − mean(others) and its 95% interval by Welch's t; NaN with one value."""
    return contrast((1, ours), (-1, others))


def contrast(*terms: tuple[float, Sequence[float]]) -> Contrast:
    """Returns Σ c · mean(values) over independent groups, and its 95% interval.

    The interval is Student's t with the degrees of freedom of Welch (1947) and Satterthwaite
    (1946); NaN where a group has one value.
    """
    groups = [(factor, estimate(values)) for factor, values in terms]
    mean, n = sum(c * group.mean for c, group in groups), min(group.n for _, group in groups)
    if n < 2:
        return Contrast(mean, math.nan, math.nan, n)
    variances = [(c * group.std) ** 2 / group.n for c, group in groups]
    error = math.sqrt(sum(variances))
    if error == 0:
        return Contrast(mean, 0.0, 0.0, n)
    freedom = error**4 / sum(
        variance**2 / (group.n - 1) for variance, (_, group) in zip(variances, groups, strict=True)
    )
    return Contrast(mean, error, float(scipy.stats.t.ppf(0.975, freedom)) * error, n)


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the mean of each `window` consecutive values: [n - window + 1]."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    return (sums[window:] - sums[:-window]) / window
