"""Batches of few fixed shapes in a seeded order that can be entered at any step.

The batch at a step is a function of (seed, step): a stretch of batches takes its examples from the mixture's sequence
by their numbers and batches them. The only state to keep for resuming is the step itself, and every process of a run
on several hosts computes the same batch and takes its rows of it. That is why grain is not used here: its iterators
carry state that would have to be kept with every checkpoint, its shards are read by one process each, so that the order
depends on their number, and batches of one length bucket each would need a pipeline of our own on top. What its worker
processes are for, reading ahead of the device, is not needed of examples that are tokenised before the first step.

Shapes: every example belongs to one (prompt bucket, completion bucket) pair and batches hold examples of one pair
as far as possible. XLA compiles once per pair; the bucket bounds are those that pad least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int
from numpy.typing import NDArray

from attar.distill.data import DataError, DataSet, Example
from attar.distill.examples import example_lengths
from attar.distill.mixture import Mixture
from attar.distill.policy_gradient import PolicyLabels
from attar.distill.stored_targets import StoredTargets

STRETCH_BATCHES = 256
"""Batches planned together: enough to sort examples by length, few enough to keep the mixture's shares."""
_BATCHES = 4  # tells these random numbers from others made of (seed, step)


class TeacherView(NamedTuple):
    """What a teacher of another vocabulary reads in the place of a batch; a pytree.

    Attributes:
      prompts, prompt_lengths, completions, completion_lengths: As of `Batch`, in the teacher's tokens.
      positions: int32, for each completion position of the batch the teacher's that stands behind the same text; -1
        where there is none.
    """

    prompts: Int[Array | NDArray[np.int32], "B Q"]
    prompt_lengths: Int[Array | NDArray[np.int32], " B"]
    completions: Int[Array | NDArray[np.int32], "B M"]
    completion_lengths: Int[Array | NDArray[np.int32], " B"]
    positions: Int[Array | NDArray[np.int32], "B N"]


class Batch(NamedTuple):
    """Rows of one shape, in host or device memory; a pytree.

    Attributes:
      prompts: int32, padded on the left, so that completions begin at the same column in every row.
      prompt_lengths: int32, at least 1.
      completions: int32, padded on the right.
      completion_lengths: int32, the end of sequence counted; 0 for an empty completion.
      stored: What was stored of the teacher at each completion position; None where nothing was.
      policy: Of the student's own samples, where they were rewarded; None elsewhere.
      view: What a teacher of another vocabulary reads; None where the teacher has the student's.
    """

    prompts: Int[Array | NDArray[np.int32], "B P"]
    prompt_lengths: Int[Array | NDArray[np.int32], " B"]
    completions: Int[Array | NDArray[np.int32], "B N"]
    completion_lengths: Int[Array | NDArray[np.int32], " B"]
    stored: StoredTargets | None = None
    policy: PolicyLabels | None = None
    view: TeacherView | None = None


@dataclass(frozen=True)
class Buckets:
    """Ascending lengths in tokens that prompts and completions are padded to."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]


class PlannedBatch(NamedTuple):
    """Examples of one batch and the shape that they are padded to."""

    indices: tuple[int, ...]
    prompt_tokens: int
    completion_tokens: int


def choose_bounds(
    lengths: Sequence[int] | NDArray[np.int64], num_buckets: int, largest: int | None = None, multiple: int = 8
) -> tuple[int, ...]:
    """At most `num_buckets` lengths for which the total padding is least.

    Exact dynamic programme over the distinct rounded lengths.

    Args:
      lengths: In tokens.
      largest: Bound that no length exceeds, if there is one; a bucket is not rounded up beyond it.
      multiple: Buckets are multiples of it.

    Raises:
      ValueError: If there are no lengths or `num_buckets` is below 1.
    """
    if len(lengths) == 0 or num_buckets < 1:
        raise ValueError(f"num_buckets and the number of lengths must be at least 1, got {num_buckets}, {len(lengths)}")
    rounded = np.maximum(-(-np.asarray(lengths) // multiple), 1) * multiple
    rounded = rounded if largest is None else np.minimum(rounded, largest)
    bounds, counts = np.unique(rounded, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    # best[j]: least padded tokens of the j shortest groups, with the buckets so far; cuts: where the last one begins.
    best = np.array([0.0] + [np.inf] * len(bounds))
    cuts: list[list[int]] = []
    for _ in range(min(num_buckets, len(bounds))):
        costs = [best[: j + 1] + (below[j + 1] - below[: j + 1]) * float(bounds[j]) for j in range(len(bounds))]
        cuts.append([int(np.argmin(cost)) for cost in costs])
        best = np.array([0.0] + [float(cost.min()) for cost in costs])
    chosen, end = [], len(bounds)
    for cut in reversed(cuts):
        if end:
            chosen.append(int(bounds[end - 1]))
            end = cut[end - 1]
    return tuple(sorted(chosen))


def choose_buckets(data: DataSet, num_prompt_buckets: int, num_completion_buckets: int) -> Buckets:
    """Bucket bounds that pad the examples least and stay within the limits they were read under.

    Windows of text may be longer than these limits; then they are the bound.
    """
    prompts, completions = example_lengths(data.examples).T
    return Buckets(
        choose_bounds(prompts, num_prompt_buckets, max(data.limits.prompt_tokens, int(prompts.max()))),
        choose_bounds(completions, num_completion_buckets, max(data.limits.completion_tokens, int(completions.max()))),
    )


class BatchStream:
    """Endless batches over the examples; `batch(step)` may be asked in any order.

    Args:
      examples: The data.
      mixture: Order over the examples.
      batch_size: Rows of a batch.
      seed: Of the order of batches.
      buckets: Shapes to pad to.
      pad_token_id: Fills rows.

    Raises:
      DataError: If there are fewer examples than rows in a batch.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        mixture: Mixture,
        batch_size: int,
        seed: int,
        buckets: Buckets,
        pad_token_id: int,
    ) -> None:
        if len(examples) < batch_size:
            raise DataError(f"batch_size must be at most the number of examples, got {batch_size} and {len(examples)}")
        self._examples = examples
        lengths = example_lengths(examples)
        sides = (_round_up(lengths[:, 0], buckets.prompt), _round_up(lengths[:, 1], buckets.completion))
        self._shapes = np.stack(sides, axis=1)
        self._mixture = mixture
        self._batch_size = batch_size
        self._seed = seed
        self._pad_token_id = pad_token_id
        self._stretch_batches = min(STRETCH_BATCHES, len(examples) // batch_size)
        self._plan: tuple[int, list[PlannedBatch]] = (-1, [])

    def position(self, step: int) -> tuple[int, int]:
        """(whole passes over the examples, batches since the last one ended) that a step reads, both from 0."""
        passes, drawn = divmod(step * self._batch_size, self._mixture.num_examples)
        return passes, drawn // self._batch_size

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        planned = self._planned(step)
        rows = [self._examples[i] for i in planned.indices]
        return pad_batch(rows, planned.prompt_tokens, planned.completion_tokens, self._pad_token_id)

    def members(self, step: int) -> list[list[int]]:
        """Which examples stand in each row of a step's batch."""
        return [[index] for index in self._planned(step).indices]

    def _planned(self, step: int) -> PlannedBatch:
        stretch, index = divmod(step, self._stretch_batches)
        if self._plan[0] != stretch:
            self._plan = (stretch, self._plan_stretch(stretch))
        return self._plan[1][index]

    def _plan_stretch(self, stretch: int) -> list[PlannedBatch]:
        draws = self._stretch_batches * self._batch_size
        drawn = self._mixture.draws(stretch * draws, (stretch + 1) * draws)
        shapes = {index: (int(self._shapes[index, 0]), int(self._shapes[index, 1])) for index in drawn}
        return plan_batches(drawn, shapes, self._batch_size, np.random.default_rng([self._seed, _BATCHES, stretch]))


def plan_batches(
    drawn: Sequence[int], shapes: Mapping[int, tuple[int, int]], batch_size: int, rng: np.random.Generator
) -> list[PlannedBatch]:
    """Batches of the drawn examples, a multiple of `batch_size`, in random order; of one shape as far as possible."""
    waiting: dict[tuple[int, int], list[int]] = {}
    plan: list[PlannedBatch] = []
    for i in rng.permutation(len(drawn)).tolist():
        index = drawn[i]
        rows = waiting.setdefault(shapes[index], [])
        rows.append(index)
        if len(rows) == batch_size:
            plan.append(PlannedBatch(tuple(waiting.pop(shapes[index])), *shapes[index]))
    # What is left is batched across buckets in order of length, so that little of it is padded further than needed.
    leftover = [(shape, index) for shape in sorted(waiting) for index in waiting[shape]]
    for start in range(0, len(leftover), batch_size):
        group = leftover[start : start + batch_size]
        prompt, completion = (max(shape[side] for shape, _ in group) for side in (0, 1))
        plan.append(PlannedBatch(tuple(index for _, index in group), prompt, completion))
    return [plan[i] for i in rng.permutation(len(plan)).tolist()]


def pad_batch(rows: Sequence[Example], prompt_tokens: int, completion_tokens: int, pad_token_id: int) -> Batch:
    """Prompts padded on the left to [B, prompt_tokens], completions on the right to [B, completion_tokens]."""
    prompts = np.full((len(rows), prompt_tokens), pad_token_id, np.int32)
    completions = np.full((len(rows), completion_tokens), pad_token_id, np.int32)
    for i, row in enumerate(rows):
        prompts[i, prompt_tokens - len(row.prompt) :] = row.prompt
        completions[i, : len(row.completion)] = row.completion
    prompt_lengths = np.array([len(row.prompt) for row in rows], np.int32)
    return Batch(prompts, prompt_lengths, completions, np.array([len(row.completion) for row in rows], np.int32))


def _round_up(lengths: NDArray[np.int64], bounds: tuple[int, ...]) -> NDArray[np.int32]:
    """`round_up` of each length."""
    round_up(int(lengths.max()), bounds)
    return np.asarray(bounds, np.int32)[np.searchsorted(bounds, lengths)]


def round_up(length: int, bounds: tuple[int, ...]) -> int:
    """The smallest bucket that holds so many tokens.

    Raises:
      ValueError: If none does.
    """
    for bound in bounds:
        if length <= bound:
            return bound
    raise ValueError(f"length must be at most the largest bucket, got {length} and {bounds[-1]}")
