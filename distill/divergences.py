"""Divergences between a teacher's and a student's next-token distributions over the vocabulary.

Everything here is a pure function of arrays, computed in float32 and unreduced: one value in nats per token.
P is the teacher's next-token distribution, Q the student's. Gradients reach the student's logits only, in closed form:
with g = ∂D/∂Q at fixed P, the gradient with respect to the student's logits is Q ⊙ (g - <Q, g>).

Args of every divergence:
  student_logits: Before softmax.
  teacher_logits: Before softmax; a constant for differentiation.
  temperature: Divides the student's logits, and the teacher's too unless `teacher_temperature` is given. The result
    carries no T² factor.
  teacher_temperature: Divides the teacher's logits; None is `temperature`.

References:
  Agarwal et al., 2024, "On-Policy Distillation of Language Models" (GKD), arXiv:2306.13649.
  Ko et al., 2024, "DistiLLM", arXiv:2402.03898, for the skewed divergences.
  Wen et al., 2023, "f-Divergence Minimization for Sequence-Level Knowledge Distillation", arXiv:2307.15190, for total
  variation.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

DivergenceName = Literal["jsd", "forward_kl", "reverse_kl", "skew_kl", "skew_reverse_kl", "total_variation"]


def forward_kl(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
) -> Float[Array, "*B"]:
    """KL(teacher ‖ student) = Σ P log(P/Q): the student must cover everything the teacher does."""
    return _tempered("forward_kl", 0.0, student_logits, teacher_logits, temperature, teacher_temperature)


def reverse_kl(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
) -> Float[Array, "*B"]:
    """KL(student ‖ teacher) = Σ Q log(Q/P): the student must stay where the teacher is likely."""
    return _tempered("reverse_kl", 0.0, student_logits, teacher_logits, temperature, teacher_temperature)


def generalized_jsd(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    beta: float,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
) -> Float[Array, "*B"]:
    """JSD(β) = β KL(P‖M) + (1-β) KL(Q‖M) with M = βP + (1-β)Q; β = 0 and 1 are the exact KLs.

    JSD(β) itself vanishes at both ends: KL(P‖Q) is the limit of JSD/β as β → 0, and KL(Q‖P) that of JSD/(1-β) as
    β → 1. The ends are therefore exactly `forward_kl` and `reverse_kl`, and a learning rate tuned at one β does not
    carry over to another.

    Args:
      beta: Mixture weight of the teacher in [0, 1]; 0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher).

    Raises:
      ValueError: If beta is outside [0, 1].
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta must be in [0, 1], got {beta}")
    kind: DivergenceName = "forward_kl" if beta == 0.0 else "reverse_kl" if beta == 1.0 else "jsd"
    return _tempered(kind, beta, student_logits, teacher_logits, temperature, teacher_temperature)


def skew_kl(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    skew: float,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
) -> Float[Array, "*B"]:
    """KL(P ‖ αP + (1-α)Q): the forward KL, bounded by -log α where the student misses what the teacher says.

    Args:
      skew: α in [0, 1); 0 is `forward_kl`.

    Raises:
      ValueError: If the skew is outside [0, 1).

    References:
      Ko et al., 2024, eq. 3.
    """
    kind: DivergenceName = "skew_kl" if _checked_skew(skew) else "forward_kl"
    return _tempered(kind, skew, student_logits, teacher_logits, temperature, teacher_temperature)


def skew_reverse_kl(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    skew: float,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
) -> Float[Array, "*B"]:
    """KL(Q ‖ (1-α)P + αQ): the reverse KL, bounded by -log α where the student says what the teacher never does.

    Args:
      skew: α in [0, 1); 0 is `reverse_kl`.

    Raises:
      ValueError: If the skew is outside [0, 1).

    References:
      Ko et al., 2024, section 3.1.
    """
    kind: DivergenceName = "skew_reverse_kl" if _checked_skew(skew) else "reverse_kl"
    return _tempered(kind, skew, student_logits, teacher_logits, temperature, teacher_temperature)


def total_variation(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
) -> Float[Array, "*B"]:
    """½ Σ |P - Q|, in [0, 1]; the gradient takes sign(0) as 0."""
    return _tempered("total_variation", 0.0, student_logits, teacher_logits, temperature, teacher_temperature)


def _checked_skew(skew: float) -> float:
    if not 0.0 <= skew < 1.0:
        raise ValueError(f"skew must be in [0, 1), got {skew}")
    return skew


def _tempered(
    kind: DivergenceName,
    mix: float,
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    temperature: float,
    teacher_temperature: float | None,
) -> Float[Array, "*B"]:
    """The divergence of both sides' logits in float32 over their temperatures, the teacher's as a constant."""
    teacher_temperature = temperature if teacher_temperature is None else teacher_temperature
    for value in (temperature, teacher_temperature):
        if not (value > 0.0 and math.isfinite(value)):
            raise ValueError(f"temperature must be positive and finite, got {value}")
    student = student_logits.astype(jnp.float32) / temperature
    return _divergence(
        student, jax.lax.stop_gradient(teacher_logits).astype(jnp.float32) / teacher_temperature, kind, mix
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _divergence(
    student_logits: Float[Array, "*B V"], teacher_logits: Float[Array, "*B V"], kind: DivergenceName, mix: float
) -> Float[Array, "*B"]:
    return _value_and_gradient(student_logits, teacher_logits, kind, mix)[0]


def _divergence_forward(
    student_logits: Float[Array, "*B V"], teacher_logits: Float[Array, "*B V"], kind: DivergenceName, mix: float
) -> tuple[Float[Array, "*B"], Float[Array, "*B V"]]:
    # The gradient is all that the backward pass needs: one array of the logits' size instead of several.
    return _value_and_gradient(student_logits, teacher_logits, kind, mix)


def _divergence_backward(
    kind: DivergenceName, mix: float, gradient: Float[Array, "*B V"], cotangent: Float[Array, "*B"]
) -> tuple[Float[Array, "*B V"], None]:
    return cotangent[..., None] * gradient, None


_divergence.defvjp(_divergence_forward, _divergence_backward)


def _value_and_gradient(
    student_logits: Float[Array, "*B V"], teacher_logits: Float[Array, "*B V"], kind: DivergenceName, mix: float
) -> tuple[Float[Array, "*B"], Float[Array, "*B V"]]:
    """Divergence per token and its gradient with respect to the student's logits."""
    log_p, log_q = jax.nn.log_softmax(teacher_logits, axis=-1), jax.nn.log_softmax(student_logits, axis=-1)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    if kind == "forward_kl":  # Q ⊙ (g - <Q, g>) with g = -P/Q, without the division
        return _expectation(p, log_p - log_q), q - p
    if kind == "reverse_kl":
        return _from_ratio(q, log_q - log_p)
    if kind == "jsd":
        log_m_over_p, log_m_over_q = _log_mixture_ratios(log_p, log_q, mix)
        value, gradient = _from_ratio(q, -log_m_over_q)
        return (1.0 - mix) * value - mix * _expectation(p, log_m_over_p), (1.0 - mix) * gradient
    if kind == "skew_kl":
        log_m_over_p, _ = _log_mixture_ratios(log_p, log_q, mix)
        slope = (mix - 1.0) * jnp.exp(-log_m_over_p)  # g = -(1-α) P/M, at most (1-α)/α in size
        return -_expectation(p, log_m_over_p), _centred(q, slope)
    if kind == "skew_reverse_kl":
        _, log_m_over_q = _log_mixture_ratios(log_p, log_q, 1.0 - mix)
        slope = -log_m_over_q - mix * jnp.exp(-log_m_over_q)  # g = log(Q/M) - α Q/M, without its constant
        return -_expectation(q, log_m_over_q), _centred(q, slope)
    slope = 0.5 * jnp.sign(q - p)
    return 0.5 * jnp.sum(jnp.abs(p - q), axis=-1), _centred(q, slope)


def _from_ratio(
    q: Float[Array, "*B V"], ratio: Float[Array, "*B V"]
) -> tuple[Float[Array, "*B"], Float[Array, "*B V"]]:
    """<Q, R> and Q ⊙ (R - <Q, R>): a KL from Q whose g is R and a constant."""
    return _expectation(q, ratio), _centred(q, ratio)


def _centred(q: Float[Array, "*B V"], slope: Float[Array, "*B V"]) -> Float[Array, "*B V"]:
    """Q ⊙ (g - <Q, g>), 0 where Q is."""
    slope = jnp.where(q > 0.0, slope, 0.0)
    return q * (slope - jnp.sum(q * slope, axis=-1, keepdims=True))


def _expectation(weight: Float[Array, "*B V"], value: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """Σ w·value, where tokens of weight 0 count 0 even if the value is infinite or undefined there."""
    return jnp.sum(weight * jnp.where(weight > 0.0, value, 0.0), axis=-1)


def _log_mixture_ratios(
    log_p: Float[Array, "*B V"], log_q: Float[Array, "*B V"], beta: float
) -> tuple[Float[Array, "*B V"], Float[Array, "*B V"]]:
    """log(M/P) and log(M/Q) of M = βP + (1-β)Q, exactly 0 where P = Q and free of overflow elsewhere.

    With d = log Q - log P: log(M/P) = log1p((1-β)(e^d - 1)) for d ≤ 0, and for d > 0 the same formula seen from Q,
    log(M/Q) = log1p(β(e^-d - 1)), so that no exponent is positive.
    """
    both_zero = jnp.isneginf(log_p) & jnp.isneginf(log_q)
    d = jnp.where(both_zero, 0.0, log_q - log_p)
    correction = jnp.log1p(jnp.where(d <= 0.0, 1.0 - beta, beta) * jnp.expm1(-jnp.abs(d)))
    return correction + jnp.maximum(d, 0.0), correction - jnp.minimum(d, 0.0)
