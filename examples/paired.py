"""Statistics over seeds: means, differences of arms that share a seed, and ratios of two gains, with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats  # type: ignore[import-untyped]  # ships neither stubs nor py.typed

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; the bounds of an unbounded one are infinite."""

    value: float
    low: float
    high: float


def mean_over_seeds(values: ArrayLike) -> Estimate:
    """The mean and Student's interval; infinite for a single value. For arms in pairs, give their differences."""
    array = np.asarray(values, np.float64)
    half = _quantile(len(array)) * math.sqrt(_covariance(array, array)) if len(array) > 1 else math.inf
    return Estimate(float(array.mean()), float(array.mean()) - half, float(array.mean()) + half)


def gain_ratio(gains: Sequence[float], baseline_gains: Sequence[float]) -> Estimate:
    """Mean gain over the mean of another arm's gain on the same seeds, with Fieller's interval.

    It is unbounded where the other gain is not told from 0, as a ratio to it then says nothing.

    References:
      Fieller, 1954, "Some Problems in Interval Estimation", Journal of the Royal Statistical Society B 16.
    """
    above, below = np.asarray(gains, np.float64), np.asarray(baseline_gains, np.float64)
    top, bottom = float(above.mean()), float(below.mean())
    value = top / bottom if bottom else math.nan
    if len(above) < 2:
        return Estimate(value, -math.inf, math.inf)
    squared = _quantile(len(above)) ** 2
    # Ratios r for which top - r * bottom is not told from 0: a * r^2 - 2 * b * r + c <= 0.
    a = bottom**2 - squared * _covariance(below, below)
    b = top * bottom - squared * _covariance(above, below)
    c = top**2 - squared * _covariance(above, above)
    if a <= 0 or b**2 < a * c:
        return Estimate(value, -math.inf, math.inf)
    root = math.sqrt(b**2 - a * c)
    return Estimate(value, (b - root) / a, (b + root) / a)


def spell(estimate: Estimate, digits: int = 2) -> str:
    """`1.23 [0.98, 1.51]`."""
    if math.isinf(estimate.low) and math.isinf(estimate.high):
        return f"{estimate.value:.{digits}f} [any]"
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _quantile(count: int) -> float:
    return float(stats.t.ppf((1 + _CONFIDENCE) / 2, count - 1))


def _covariance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Of the two means."""
    return float(np.cov(one, other)[0, 1]) / len(one)
