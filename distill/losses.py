"""Divergences between a teacher and a student over the vocabulary, and the weights that average them.

Everything here is a pure function of arrays, computed in float32 and unreduced: one value in nats per token.
P is the teacher's next-token distribution, Q the student's. Gradients reach the student's logits only, in closed form.

References:
  Agarwal et al., 2024, "On-Policy Distillation of Language Models" (GKD), arXiv:2306.13649.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Normalization = Literal["sequence", "token"]
"""How per-token values become one loss. `sequence`: the mean over each sequence's own tokens, then the mean over
sequences (GKD's definition, the default). `token`: the mean over all tokens of the batch (long samples weigh more)."""


def forward_kl(
    student_logits: Float[Array, "*B V"], teacher_logits: Float[Array, "*B V"], temperature: float = 1.0
) -> Float[Array, "*B"]:
    """KL(teacher ‖ student) = Σ P log(P/Q): the student must cover everything the teacher does.

    Args:
      student_logits: Before softmax.
      teacher_logits: Before softmax; a constant for differentiation.
      temperature: Divides the logits of both sides. The result carries no T² factor.

    Returns:
      Per-token divergence in nats.
    """
    return _divergence(*_tempered(student_logits, teacher_logits, temperature), 0.0)


def reverse_kl(
    student_logits: Float[Array, "*B V"], teacher_logits: Float[Array, "*B V"], temperature: float = 1.0
) -> Float[Array, "*B"]:
    """KL(student ‖ teacher) = Σ Q log(Q/P): the student must stay where the teacher is likely.

    Arguments and result as in `forward_kl`.
    """
    return _divergence(*_tempered(student_logits, teacher_logits, temperature), 1.0)


def generalized_jsd(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    beta: float,
    temperature: float = 1.0,
) -> Float[Array, "*B"]:
    """JSD(β) = β KL(P‖M) + (1-β) KL(Q‖M) with M = βP + (1-β)Q; β = 0 and 1 are the exact KLs.

    JSD(β) itself vanishes at both ends: KL(P‖Q) is the limit of JSD/β as β → 0, and KL(Q‖P) that of JSD/(1-β) as
    β → 1. The ends are therefore exactly `forward_kl` and `reverse_kl`, and a learning rate tuned at one β does not
    carry over to another.

    Args:
      student_logits: Before softmax.
      teacher_logits: Before softmax; a constant for differentiation.
      beta: Mixture weight of the teacher in [0, 1]; 0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher).
      temperature: Divides the logits of both sides. The result carries no T² factor.

    Returns:
      Per-token divergence in nats.

    Raises:
      ValueError: If beta is outside [0, 1].
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta must be in [0, 1], got {beta}")
    return _divergence(*_tempered(student_logits, teacher_logits, temperature), beta)


def cross_entropy(student_logits: Float[Array, "*B V"], targets: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Negative log-likelihood of the target tokens, in nats."""
    logits = student_logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]  # [*B]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


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


def _tempered(
    student_logits: Float[Array, "*B V"], teacher_logits: Float[Array, "*B V"], temperature: float
) -> tuple[Float[Array, "*B V"], Float[Array, "*B V"]]:
    """Both sides' logits in float32 over the temperature, the teacher's as a constant."""
    if not (temperature > 0.0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    student = student_logits.astype(jnp.float32) / temperature
    return student, jax.lax.stop_gradient(teacher_logits).astype(jnp.float32) / temperature


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _divergence(
    student_logits: Float[Array, "*B V"], teacher_logits: Float[Array, "*B V"], beta: float
) -> Float[Array, "*B"]:
    """The divergence of `generalized_jsd`, KLs at its ends, with its gradient in closed form."""
    return _value_and_gradient(student_logits, teacher_logits, beta)[0]


def _divergence_forward(
    student_logits: Float[Array, "*B V"], teacher_logits: Float[Array, "*B V"], beta: float
) -> tuple[Float[Array, "*B"], Float[Array, "*B V"]]:
    # The gradient is all that the backward pass needs: one array of the logits' size instead of several.
    return _value_and_gradient(student_logits, teacher_logits, beta)


def _divergence_backward(
    beta: float, gradient: Float[Array, "*B V"], cotangent: Float[Array, "*B"]
) -> tuple[Float[Array, "*B V"], None]:
    return cotangent[..., None] * gradient, None


_divergence.defvjp(_divergence_forward, _divergence_backward)


def _value_and_gradient(
    student_logits: Float[Array, "*B V"], teacher_logits: Float[Array, "*B V"], beta: float
) -> tuple[Float[Array, "*B"], Float[Array, "*B V"]]:
    """Divergence per token and its gradient with respect to the student's logits.

    Forward KL: Q - P. Reverse KL: Q (R - <Q, R>) with R = log(Q/P). JSD: (1-β) Q (R - <Q, R>) with R = log(Q/M).
    """
    log_p, log_q = jax.nn.log_softmax(teacher_logits, axis=-1), jax.nn.log_softmax(student_logits, axis=-1)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    if beta == 0.0:
        return _expectation(p, log_p - log_q), q - p
    if beta == 1.0:
        from_p, ratio, scale = jnp.zeros(()), log_q - log_p, 1.0
    else:
        log_m_over_p, log_m_over_q = _log_mixture_ratios(log_p, log_q, beta)
        from_p, ratio, scale = -beta * _expectation(p, log_m_over_p), -log_m_over_q, 1.0 - beta
    ratio = jnp.where(q > 0.0, ratio, 0.0)
    mean_ratio = jnp.sum(q * ratio, axis=-1)
    return from_p + scale * mean_ratio, scale * q * (ratio - mean_ratio[..., None])


def _expectation(weight: Float[Array, "*B V"], value: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """Σ w·value, where tokens of weight 0 count 0 even if the value is infinite or undefined there."""
    return jnp.sum(weight * jnp.where(weight > 0.0, value, 0.0), axis=-1)


def _log_mixture_ratios(
    log_p: Float[Array, "*B V"], log_q: Float[Array, "*B V"], beta: float
) -> tuple[Float[Array, "*B V"], Float[Array, "*B V"]]:
    """log(M/P) and log(M/Q), exactly 0 where P = Q and free of overflow elsewhere.

    With d = log Q - log P: log(M/P) = log1p((1-β)(e^d - 1)) for d ≤ 0, and for d > 0 the same formula seen from Q,
    log(M/Q) = log1p(β(e^-d - 1)), so that no exponent is positive.
    """
    both_zero = jnp.isneginf(log_p) & jnp.isneginf(log_q)
    d = jnp.where(both_zero, 0.0, log_q - log_p)
    correction = jnp.log1p(jnp.where(d <= 0.0, 1.0 - beta, beta) * jnp.expm1(-jnp.abs(d)))
    return correction + jnp.maximum(d, 0.0), correction - jnp.minimum(d, 0.0)
