"""Uncertainty of figures over examples: percentile intervals, and differences of two models on the same examples.

A figure here is a function of sums over examples: a mean is Σ value / Σ 1, a perplexity exp(Σ nats / Σ tokens), a
corpus BLEU a function of summed n-gram counts. Drawing examples with replacement and summing again gives the
distribution of any of them. With fewer than about twenty examples the intervals are too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Score = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Sums [R, S] -> figures [R]."""

_CHUNK = 1 << 22  # numbers drawn at a time, to bound memory


@dataclass(frozen=True)
class Interval:
    """A figure, such as a mean, with a bootstrap percentile interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """What the second of two models has more than the first, on the same examples.

    Attributes:
      mean: The figure of the second less that of the first.
      low, high: Bootstrap percentile interval of the difference.
      p_value: Two-sided, of the sign: twice the share of resamples in which the difference is not on its side of 0.
      num_examples: Examples that both have a score for.
    """

    mean: float
    low: float
    high: float
    p_value: float
    num_examples: int


@dataclass(frozen=True)
class Figure:
    """A figure as a function of sums over examples.

    Attributes:
      parts: What each example adds to the sums, [E, S]; a row with a NaN is an example that was not measured.
      score: From sums to the figure.
    """

    parts: NDArray[np.float64]
    score: Score

    @property
    def measured(self) -> NDArray[np.bool_]:
        """Which examples were measured, [E]."""
        return np.asarray(~np.isnan(self.parts).any(axis=1))

    @property
    def value(self) -> float:
        """The figure over the measured examples, of which there must be one."""
        return float(self.score(self.parts[self.measured].sum(axis=0, keepdims=True))[0])


def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The first sum over the second: [R, 2] -> [R]."""
    return sums[:, 0] / sums[:, 1]


def mean_figure(values: ArrayLike) -> Figure:
    """The mean of one value per example, [E], NaN where it was not measured."""
    array = np.asarray(values, np.float64).reshape(-1)
    return Figure(np.stack([array, np.ones_like(array)], axis=1), ratio)


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of one value per independent unit (example, not token) with its interval; see `figure_interval`."""
    return figure_interval(mean_figure(values), confidence=confidence, resamples=resamples, seed=seed)


def figure_interval(figure: Figure, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """A figure over the measured examples and the percentile interval of its values on resamples with replacement.

    Args:
      figure: With at least one measured example.
      confidence: Mass of the interval, in (0, 1).
      resamples: How many sets of examples are drawn.
      seed: Of the drawing.

    Raises:
      ValueError: If nothing was measured or the confidence is outside (0, 1).

    References:
      Efron, 1979, "Bootstrap Methods: Another Look at the Jackknife".
    """
    _check_confidence(confidence)
    parts = figure.parts[figure.measured]
    if len(parts) == 0:
        raise ValueError("a bootstrap interval needs at least one value, got none")
    drawn = np.concatenate([figure.score(weights @ parts) for weights in _resamples(len(parts), resamples, seed)])
    low, high = _percentiles(drawn, confidence)
    return Interval(figure.value, low, high)


def paired_bootstrap(
    first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Difference:
    """Mean of `second` less mean of `first`, one value per example each; see `figure_difference`."""
    figures = mean_figure(first), mean_figure(second)
    return figure_difference(*figures, confidence=confidence, resamples=resamples, seed=seed)


def figure_difference(
    first: Figure, second: Figure, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Difference:
    """The difference of one figure between two models, by drawing the same examples for both.

    Pairing removes what makes an example hard for both, which is most of the variance of each.

    Args:
      first: Of the model compared to, over E examples.
      second: The same figure of the other model, over the same examples in the same order.
      confidence: Mass of the interval, in (0, 1).
      resamples: How many sets of examples are drawn; the least p-value is 2 / (resamples + 1).
      seed: Of the drawing.

    Raises:
      ValueError: If the numbers of examples differ, fewer than two were measured for both, or the confidence is
        outside (0, 1).

    References:
      Koehn, 2004, "Statistical Significance Tests for Machine Translation Evaluation", section 4; one is added to
      count and resamples as in Davison and Hinkley, 1997, "Bootstrap Methods and their Application", eq. 4.11.
    """
    _check_confidence(confidence)
    if len(first.parts) != len(second.parts):
        raise ValueError(f"pairs need equal numbers of examples, got {len(first.parts)} and {len(second.parts)}")
    both = first.measured & second.measured
    if both.sum() < 2:
        raise ValueError(f"a paired bootstrap needs at least two pairs, got {both.sum()}")
    one, other = Figure(first.parts[both], first.score), Figure(second.parts[both], second.score)
    drawn = np.concatenate(
        [
            other.score(weights @ other.parts) - one.score(weights @ one.parts)
            for weights in _resamples(len(one.parts), resamples, seed)
        ]
    )
    low, high = _percentiles(drawn, confidence)
    against = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p_value = min(1.0, 2 * (1 + int(against)) / (1 + resamples))
    return Difference(other.value - one.value, low, high, p_value, len(one.parts))


def _resamples(size: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each example was drawn: arrays [R, size] whose rows sum to size, `resamples` rows in all."""
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // size)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = rng.integers(0, size, (count, size)) + size * np.arange(count)[:, None]
        yield np.bincount(drawn.reshape(-1), minlength=count * size).reshape(count, size).astype(np.float64)


def _percentiles(drawn: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
