"""What is stored of a teacher in its place, and losses where that is a part of its distributions.

A whole distribution over 256,000 tokens for every position of a corpus cannot be kept. Renormalising the likeliest
tokens teaches the student that nothing else can follow; the two estimators here do not: the top tokens keep their
probabilities and the rest is one more outcome, or tokens drawn from the teacher stand for it without bias. Hidden
states, some hundred times smaller than what they project to, give the whole distribution back, and need no estimator.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

_ROUNDING = 1e-6  # what a sum of float32 probabilities may lack of 1


class TopTargets(NamedTuple):
    """A teacher's likeliest tokens; what they lack of a mass of 1 belongs to all other tokens together.

    Attributes:
      tokens: int32, distinct at each position.
      log_probs: float32, not renormalised.
    """

    tokens: Int[Array | NDArray[np.int32], "*B K"]
    log_probs: Float[Array | NDArray[np.float32], "*B K"]


class DrawnTargets(NamedTuple):
    """Tokens drawn from a teacher with replacement; one drawn twice stands twice."""

    tokens: Int[Array | NDArray[np.int32], "*B K"]


class TeacherStates(NamedTuple):
    """A teacher's last hidden states: with its table of logits its whole distribution, at any temperature.

    Attributes:
      hidden: float32, normed.
    """

    hidden: Float[Array | NDArray[np.float32], "*B D"]


StoredTargets = TopTargets | DrawnTargets | TeacherStates


def stored_forward_kl(student_logits: Float[Array, "*B V"], stored: TopTargets | DrawnTargets) -> Float[Array, "*B"]:
    """The forward KL as far as what is stored tells it; of drawn tokens with the teacher's entropy, a constant."""
    tokens = jnp.asarray(stored.tokens)
    if isinstance(stored, DrawnTargets):
        return sampled_cross_entropy(student_logits, tokens)
    return top_forward_kl(student_logits, tokens, jnp.asarray(stored.log_probs))


def stored_cross_entropy(student_logits: Float[Array, "*B V"], stored: TopTargets | DrawnTargets) -> Float[Array, "*B"]:
    """-Σ P log Q as far as what is stored tells it, in nats: the gradient is that of `stored_forward_kl`.

    Of the likeliest tokens it is a lower bound, for the rest counts as one outcome.
    """
    divergence = stored_forward_kl(student_logits, stored)
    if isinstance(stored, DrawnTargets):
        return divergence
    log_p = jnp.asarray(stored.log_probs)
    p = jnp.exp(log_p)
    tail = _tail_mass(p)
    return divergence - jnp.sum(_terms(p, log_p), axis=-1) - _terms(tail, _log(tail))


def top_forward_kl(
    student_logits: Float[Array, "*B V"], top_tokens: Int[Array, "*B K"], top_log_probs: Float[Array, "*B K"]
) -> Float[Array, "*B"]:
    """KL(teacher ‖ student) over K + 1 outcomes: the stored tokens, and all others together.

    It is a lower bound of the whole divergence (what lumps outcomes together cannot add to it), 0 for equal
    distributions, and the whole of it for K = V.

    Args:
      student_logits: Before softmax.
      top_tokens: Distinct tokens.
      top_log_probs: The teacher's log-probabilities of them, not renormalised.

    Returns:
      Nats per token.
    """
    log_q = jax.nn.log_softmax(student_logits.astype(jnp.float32), axis=-1)
    top_log_q = jnp.take_along_axis(log_q, top_tokens, axis=-1)  # [*B, K]
    log_p = top_log_probs.astype(jnp.float32)
    p = jnp.exp(log_p)
    tail = _tail_mass(p)
    return jnp.sum(_terms(p, log_p - top_log_q), axis=-1) + _terms(tail, _log(tail) - _log_tail(log_q, top_tokens))


def sampled_cross_entropy(student_logits: Float[Array, "*B V"], samples: Int[Array, "*B K"]) -> Float[Array, "*B"]:
    """-1/K Σ log Q(sample): unbiased for Gemma 2's loss -Σ P log Q if the tokens are drawn from P.

    Args:
      student_logits: Before softmax.
      samples: Tokens drawn from the teacher with replacement; one drawn twice stands twice.

    Returns:
      Nats per token: the forward KL plus the teacher's entropy.

    References:
      Gemma Team, 2024, arXiv:2408.00118, section 3.2, for the loss; Gemma Team, 2025, arXiv:2503.19786, section 2.2,
      for sampling it.
    """
    logits = student_logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, samples, axis=-1)  # [*B, K]
    return jax.nn.logsumexp(logits, axis=-1) - chosen.mean(axis=-1)


def _tail_mass(p: Float[Array, "*B K"]) -> Float[Array, "*B"]:
    """What probabilities lack of 1, 0 where that is no more than rounding."""
    tail = 1.0 - p.sum(axis=-1)
    return jnp.where(tail > _ROUNDING, tail, 0.0)


def _log_tail(log_q: Float[Array, "*B V"], top_tokens: Int[Array, "*B K"]) -> Float[Array, "*B"]:
    """log of the student's mass outside the tokens, summed over what is there: 1 - Σ would lose all its digits."""
    outside = jnp.put_along_axis(log_q, top_tokens, -jnp.inf, axis=-1, inplace=False)
    largest = jax.lax.stop_gradient(outside.max(axis=-1, keepdims=True))
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)  # where nothing is left, the mass is 0
    return _log(jnp.sum(jnp.exp(outside - largest), axis=-1)) + largest[..., 0]


def _log(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """log x, with a gradient of 0 at 0."""
    return jnp.where(x > 0.0, jnp.log(jnp.where(x > 0.0, x, 1.0)), -jnp.inf)


def _terms(weight: Float[Array, "*S"], value: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """w·value, 0 where w is, even if the value is infinite."""
    return weight * jnp.where(weight > 0.0, value, 0.0)
