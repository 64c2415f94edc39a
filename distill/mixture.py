"""Which example is drawn when: sources in given shares, each in a seeded order, as a function of the draw's number.

A source's draw number m, from 0, is due at time (m + 1/2) / share, and draws come in the order in which they are due.
After n draws of k sources, each has been drawn share · n times, give or take (1 + k · share) / 2, wherever the run is
entered; nothing is kept. Within a source each pass visits every example once, in an order of its own.

References:
  Sainte-Laguë's method of apportionment, whose divisors 1, 3, 5, ... these times are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

_ORDER = 2  # tells these random numbers from others made of (seed, step)


class Mixture:
    """An endless sequence of examples of several sources.

    Args:
      sizes: Examples of each source; an example is named by its index over all sources.
      weights: Share of each in the draws, up to a common factor; None takes every source as often as it has examples.
      seed: Of the orders.

    Raises:
      ValueError: If there are no examples, or a weight is not positive or not there for every source.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, seed: int) -> None:
        if weights is None:
            sizes, weights = (sum(sizes),), (1.0,)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"every source must have examples, got {list(sizes)}")
        if len(weights) != len(sizes) or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"there must be one positive weight per source, got {list(weights)} for {len(sizes)}")
        self._sizes = tuple(sizes)
        self._shares = tuple(Fraction(weight) / sum(map(Fraction, weights)) for weight in weights)
        self._first = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        self._seed = seed

    @property
    def num_examples(self) -> int:
        """Of all sources together."""
        return sum(self._sizes)

    def counts(self, draws: int) -> tuple[int, ...]:
        """How many of the first so many draws each source gives."""
        before = max(draws - 2 * len(self._shares), 0)
        counts = [int(before * share + Fraction(1, 2)) for share in self._shares]  # all that are due by then
        while sum(counts) < draws:
            counts[_next(counts, self._shares)] += 1
        return tuple(counts)

    def draws(self, start: int, stop: int) -> list[int]:
        """Examples of the draws from `start` to before `stop`, source by source."""
        ranges = zip(self.counts(start), self.counts(stop), strict=True)
        return [
            self._first[source] + index
            for source, (first, last) in enumerate(ranges)
            for index in self._source_draws(source, first, last)
        ]

    def _source_draws(self, source: int, start: int, stop: int) -> Iterator[int]:
        size = self._sizes[source]
        for epoch in range(start // size, -(-stop // size)):
            order = np.random.default_rng([self._seed, _ORDER, source, epoch]).permutation(size)
            first = epoch * size
            yield from order[max(start - first, 0) : stop - first].tolist()


def _next(counts: Sequence[int], shares: Sequence[Fraction]) -> int:
    """The source whose next draw is due first."""
    return min(range(len(counts)), key=lambda j: ((2 * counts[j] + 1) / shares[j], j))
