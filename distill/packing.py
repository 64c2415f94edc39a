"""Several examples in one row: less padding, and every example gives the loss that it gives alone.

```
tokens       a0 a1 a2 | b0 b1 b2 b3 | padding       prompt and completion less its last token, which nothing reads
segment_ids   1  1  1    2  2  2  2    0            attention stays inside a segment and its positions start at 0
sources       1  2  5  6  -                         columns that predict the counted tokens, first those of a, then b
targets      a2 a3 b3 b4  -                         the counted tokens themselves
```
The counted positions stand at the front of `sources`, so that the projection to the vocabulary ends with them.

Rows are planned a stretch of examples at a time: the longest first, each into the row with the least room that holds
it. The emptiest rows that do not fill a batch go back to the next stretch. The plan is a function of (seed, lengths);
entering it at a step replays the lengths before that step, and keeps nothing.

References:
  Krell et al., 2021, "Efficient Sequence Packing without Cross-contamination", arXiv:2107.02027; Johnson et al., 1974,
  for best fit decreasing, which needs at most 11/9 of the fewest rows possible.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int
from numpy.typing import NDArray

from attar.distill.data import DataError, Example
from attar.distill.examples import example_lengths
from attar.distill.mixture import Mixture
from attar.distill.stored_targets import StoredTargets

_ROWS = 3  # tells these random numbers from others made of (seed, step)
STRETCH_BATCHES = 64
"""Batches that are planned together, about: enough to fill rows well, few enough to keep the mixture's shares."""


class PackedBatch(NamedTuple):
    """Rows of several examples each, in host or device memory; a pytree. T columns; the layout is the module's.

    Attributes:
      tokens: int32.
      segment_ids: int32, 0 on padding.
      sources: int32, columns of `tokens`.
      targets: int32.
      lengths: int32, counted tokens of the example that a target belongs to; 0 beyond the row's counted tokens.
      num_sequences: int32, examples of each row.
      stored: What was stored of the teacher for each target; None where nothing was.
    """

    tokens: Int[Array | NDArray[np.int32], "B T"]
    segment_ids: Int[Array | NDArray[np.int32], "B T"]
    sources: Int[Array | NDArray[np.int32], "B T"]
    targets: Int[Array | NDArray[np.int32], "B T"]
    lengths: Int[Array | NDArray[np.int32], "B T"]
    num_sequences: Int[Array | NDArray[np.int32], " B"]
    stored: StoredTargets | None = None
    view: None = None  # packed rows are read by teachers of the same vocabulary alone


def packed_length(example: Example) -> int:
    """Columns that an example takes; its last token is predicted and not read."""
    return len(example.prompt) + len(example.completion) - 1


def packed_lengths(examples: Sequence[Example]) -> NDArray[np.int64]:
    """`packed_length` of each example, 0 of one without a completion, [E]."""
    lengths = example_lengths(examples)
    return np.where(lengths[:, 1] > 0, lengths.sum(axis=1) - 1, 0)


def pack_rows(rows: Sequence[Sequence[Example]], num_tokens: int, pad_token_id: int) -> PackedBatch:
    """Lays out each row's examples, which have completions and fit into it together.

    Args:
      rows: Examples of each row in their order.
      num_tokens: Columns T.
      pad_token_id: Fills the rest; it is never read.
    """
    shape = (len(rows), num_tokens)
    batch = PackedBatch(
        tokens=np.full(shape, pad_token_id, np.int32),
        segment_ids=np.zeros(shape, np.int32),
        sources=np.zeros(shape, np.int32),
        targets=np.zeros(shape, np.int32),
        lengths=np.zeros(shape, np.int32),
        num_sequences=np.array([len(row) for row in rows], np.int32),
    )
    for row, examples in enumerate(rows):
        column = counted = 0
        for segment, example in enumerate(examples, start=1):
            read = slice(column, column + packed_length(example))
            new = slice(counted, counted + len(example.completion))
            batch.tokens[row, read] = np.concatenate([example.prompt, example.completion[:-1]])
            batch.segment_ids[row, read] = segment
            batch.sources[row, new] = np.arange(column + len(example.prompt) - 1, read.stop)
            batch.targets[row, new] = example.completion
            batch.lengths[row, new] = len(example.completion)
            column, counted = read.stop, new.stop
    return batch


def best_fit(lengths: Sequence[int], num_tokens: int) -> list[list[int]]:
    """Rows of indices whose lengths sum to at most `num_tokens`; equal lengths are taken in the order given."""
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room, row), ascending
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(rooms, (lengths[index], -1))
        if at == len(rooms):
            room, row = num_tokens, len(rows)
            rows.append([])
        else:
            room, row = rooms.pop(at)
        rows[row].append(index)
        if room > lengths[index]:
            insort(rooms, (room - lengths[index], row))
    return rows


class _Stretch(NamedTuple):
    """Where a stretch of batches begins: its first step, the draws made before it, and the examples left to it."""

    first_step: int
    draws: int
    left_over: tuple[int, ...]


class PackedStream:
    """Endless packed batches over the examples; `batch(step)` may be asked in any order.

    Args:
      examples: The data; those without a completion teach nothing and are left out where they are drawn.
      mixture: Order over the examples.
      batch_size: Rows of a batch.
      seed: Of the order of rows.
      num_tokens: Columns of a row.
      pad_token_id: Fills rows.

    Raises:
      DataError: If an example does not fit into a row, or all together do not fill a batch.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        mixture: Mixture,
        batch_size: int,
        seed: int,
        num_tokens: int,
        pad_token_id: int,
    ) -> None:
        self._lengths = packed_lengths(examples).tolist()
        _check_rows(examples, self._lengths, batch_size, num_tokens)
        self._examples = examples
        self._mixture = mixture
        self._batch_size = batch_size
        self._seed = seed
        self._num_tokens = num_tokens
        self._pad_token_id = pad_token_id
        wanted = STRETCH_BATCHES * batch_size * num_tokens * len(examples) // sum(self._lengths)
        self._stretch_draws = max(1, min(wanted, len(examples)))
        self._stretches = [_Stretch(0, 0, ())]  # those walked through so far
        self._plan: tuple[int, list[list[int]]] = (-1, [])

    def position(self, step: int) -> tuple[int, int]:
        """(whole passes over the examples, batch in its stretch) that a step reads, both from 0."""
        stretch = self._stretch_of(step)
        passes = self._stretches[stretch].draws // self._mixture.num_examples
        return passes, step - self._stretches[stretch].first_step

    def batch(self, step: int) -> PackedBatch:
        """The batch of a step, counted from 0."""
        rows = [[self._examples[i] for i in row] for row in self.members(step)]
        return pack_rows(rows, self._num_tokens, self._pad_token_id)

    def members(self, step: int) -> list[list[int]]:
        """Which examples stand in each row of a step's batch, in their order."""
        stretch = self._stretch_of(step)
        if self._plan[0] != stretch:
            self._plan = (stretch, self._plan_stretch(stretch)[0])
        first = (step - self._stretches[stretch].first_step) * self._batch_size
        return self._plan[1][first : first + self._batch_size]

    def _stretch_of(self, step: int) -> int:
        """Index of the stretch that holds a step."""
        while self._stretches[-1].first_step <= step:
            last = self._stretches[-1]
            rows, left_over = self._plan_stretch(len(self._stretches) - 1)
            steps = len(rows) // self._batch_size
            self._stretches.append(_Stretch(last.first_step + steps, last.draws + self._stretch_draws, left_over))
        return bisect_left(self._stretches, step + 1, key=lambda stretch: stretch.first_step) - 1

    def _plan_stretch(self, index: int) -> tuple[list[list[int]], tuple[int, ...]]:
        """Rows of whole batches in their order, and the examples left to the next stretch."""
        _, draws, left_over = self._stretches[index]
        drawn = self._mixture.draws(draws, draws + self._stretch_draws)
        rng = np.random.default_rng([self._seed, _ROWS, index])
        members = [i for i in (*left_over, *drawn) if self._lengths[i]]
        members = [members[i] for i in rng.permutation(len(members)).tolist()]
        rows = best_fit([self._lengths[i] for i in members], self._num_tokens)
        rows = [[members[i] for i in row] for row in rows]
        rows.sort(key=lambda row: -sum(self._lengths[i] for i in row))
        kept = len(rows) - len(rows) % self._batch_size
        ordered = [rows[i] for i in rng.permutation(kept).tolist()]
        return ordered, tuple(i for row in rows[kept:] for i in row)


def _check_rows(examples: Sequence[Example], lengths: Sequence[int], batch_size: int, num_tokens: int) -> None:
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if lengths[longest] > num_tokens:
        raise DataError(
            f"pack_tokens must be at least the longest example, got {num_tokens}: the one at line "
            f"{examples[longest].line} has {lengths[longest]}"
        )
    filled = sum(lengths)
    if filled <= (batch_size - 1) * num_tokens and len(best_fit([n for n in lengths if n], num_tokens)) < batch_size:
        raise DataError(
            f"a packed batch of {batch_size} rows of {num_tokens} tokens must not hold more than all examples, which "
            f"have {filled} tokens; lower batch_size or pack_tokens"
        )
