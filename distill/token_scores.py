"""Likelihood of completions and divergence to a teacher, token by token on the device and summed over each example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from attar.distill.batches import Batch, Buckets, pad_batch, round_up
from attar.distill.data import Example
from attar.distill.divergences import forward_kl, reverse_kl
from attar.distill.losses import completion_mask, cross_entropy
from attar.distill.projected_loss import projected_sums
from attar.distill.step import completion_heads
from attar.engine.config import ModelConfig
from attar.engine.sharding import place_rows, to_host
from attar.engine.transformer import Params

Rows = list[int]
"""Indices of the examples in the first rows of a batch."""

_Model = tuple[Params, ModelConfig]


@dataclass(frozen=True)
class TokenScores:
    """Per example: sums over its completion tokens by name, and how many tokens there were."""

    sums: dict[str, NDArray[np.float64]]
    lengths: NDArray[np.int64]

    def means(self) -> dict[str, NDArray[np.float64]]:
        """Means per token by name, [E]; NaN for an example without tokens."""
        lengths = np.where(self.lengths > 0, self.lengths, np.nan)
        return {name: values / lengths for name, values in self.sums.items()}


def score_examples(
    student: _Model, teacher: _Model | None, batches: Sequence[tuple[Batch, Rows]], num_examples: int
) -> TokenScores:
    """Scores the completions of batches.

    Args:
      student: Weights and shape of the model to measure.
      teacher: What it is compared to; None leaves all but `nll` out.
      batches: With the examples' indices, as `example_batches` gives them.
      num_examples: E.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    lengths = np.zeros(num_examples, np.int64)
    teacher_params, teacher_config = teacher or (None, None)
    for batch, rows in batches:
        scored = _score_batch(student[0], teacher_params, place_rows(batch), student[1], teacher_config)
        lengths[rows] = to_host(batch.completion_lengths)[: len(rows)]
        for name, values in scored.items():
            sums.setdefault(name, np.zeros(num_examples))[rows] = to_host(values)[: len(rows)]
    return TokenScores(sums, lengths)


def example_batches(
    examples: Sequence[Example], batch_size: int, buckets: Buckets, members: Sequence[int] | None = None
) -> Iterator[tuple[Batch, Rows]]:
    """Batches of one shape per prompt bucket with the examples' indices; short ones are filled with copies of a row.

    Args:
      examples: E examples.
      batch_size: Rows of a batch.
      buckets: Shapes.
      members: Indices of the examples to take; None takes all.
    """
    by_bucket: dict[int, list[int]] = {}
    for index in range(len(examples)) if members is None else members:
        by_bucket.setdefault(round_up(len(examples[index].prompt), buckets.prompt), []).append(index)
    for prompt_tokens, members in sorted(by_bucket.items()):
        for start in range(0, len(members), batch_size):
            rows = members[start : start + batch_size]
            filled = rows + [rows[0]] * (batch_size - len(rows))
            # Padding ids are never read, so any id will do.
            yield pad_batch([examples[i] for i in filled], prompt_tokens, buckets.completion[-1], 0), rows


@partial(jax.jit, static_argnames=("student", "teacher"))
def _score_batch(
    student_params: Params,
    teacher_params: Params | None,
    batch: Batch,
    student: ModelConfig,
    teacher: ModelConfig | None,
) -> dict[str, Float[Array, " B"]]:
    """Sums over the completion of each row."""
    known = None if teacher is None or teacher_params is None else (teacher_params, teacher)
    heads = completion_heads(student_params, student, batch, known, constant=True)
    mask = completion_mask(jnp.asarray(batch.completion_lengths), batch.completions.shape[1])
    return projected_sums(_token_scores, *heads, jnp.asarray(batch.completions), mask)


def _token_scores(
    logits: Float[Array, "B N V"], targets: Int[Array, "B N"], teacher_logits: Float[Array, "B N V"] | None
) -> dict[str, Float[Array, "B N"]]:
    values = {"nll": cross_entropy(logits, targets)}
    return values if teacher_logits is None else values | compare_logits(logits, teacher_logits)


def compare_logits(
    logits: Float[Array, "B N V"], teacher_logits: Float[Array, "B N V"]
) -> dict[str, Float[Array, "B N"]]:
    """Both divergences of each token in nats, and 1 where both models hold the same token for the likeliest."""
    return {
        "kl_teacher_student": forward_kl(logits, teacher_logits),
        "kl_student_teacher": reverse_kl(logits, teacher_logits),
        "agreement": (jnp.argmax(logits, -1) == jnp.argmax(teacher_logits, -1)).astype(jnp.float32),  # [B, N]
    }
