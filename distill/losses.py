"""The likelihood of given tokens or of a teacher's, and the masks and weights that average values per token."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Normalization = Literal["sequence", "token"]
"""How per-token values become one loss. `sequence`: the mean over each sequence's own tokens, then the mean over
sequences (GKD's definition, the default). `token`: the mean over all tokens of the batch (long samples weigh more)."""


def cross_entropy(student_logits: Float[Array, "*B V"], targets: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Negative log-likelihood of the target tokens, in nats."""
    logits = student_logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]  # [*B]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def teacher_cross_entropy(
    student_logits: Float[Array, "*B V"], teacher_logits: Float[Array, "*B V"]
) -> Float[Array, "*B"]:
    """-Σ P log Q in nats: `cross_entropy` with the teacher's whole distribution P in the place of one token.

    It is the forward KL and the teacher's entropy, and has the forward KL's gradient Q - P.

    Args:
      student_logits: Before softmax.
      teacher_logits: Before softmax; a constant for differentiation.

    References:
      Gemma Team, 2024, arXiv:2408.00118, section 3.2.
    """
    logits = student_logits.astype(jnp.float32)
    p = jax.nn.softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32), axis=-1)
    return -jnp.sum(p * jax.nn.log_softmax(logits, axis=-1), axis=-1)


def completion_mask(lengths: Int[Array, " B"], num_tokens: int) -> Bool[Array, "B N"]:
    """True on the first `lengths[b]` completion tokens.

    A length counts the end-of-sequence token, so that EOS is learnt even where padding uses the same id: masks come
    from lengths and never from comparing ids.
    """
    return jnp.arange(num_tokens)[None, :] < lengths[:, None]


def token_weights(mask: Bool[Array, "B N"], normalization: Normalization) -> Float[Array, "B N"]:
    """Weights that sum to 1 over the counted tokens, so that the loss is Σ weights · values.

    They are made once for a whole batch: its parts then simply add up, whatever the accumulation or sharding.
    Sequences without tokens count neither as zeros nor in the number of sequences; a batch without any token has
    weights 0.

    Raises:
      ValueError: If the normalisation is unknown.
    """
    counted = mask.astype(jnp.float32)
    if normalization == "token":
        return counted / jnp.maximum(counted.sum(), 1.0)
    if normalization == "sequence":
        lengths = counted.sum(axis=-1, keepdims=True)  # [B, 1]
        num_sequences = jnp.maximum((lengths > 0).sum(), 1)
        return counted / jnp.maximum(lengths, 1.0) / num_sequences
    raise ValueError(f"normalization must be 'sequence' or 'token', got {normalization!r}")
