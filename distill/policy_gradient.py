"""The reward's part of a loss: REINFORCE on the student's own samples, token by token."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from attar.distill.losses import Normalization, cross_entropy

_LARGEST_RATIO = 2.0


class PolicyLabels(NamedTuple):
    """What the policy gradient reads at each position of a sample.

    Attributes:
      advantages: Of the sample, times what undoes the average over tokens: see `scaled_advantages`.
      log_probs: Of each token under the distribution that it was drawn from.
    """

    advantages: Float[Array | NDArray[np.float32], "B N"]
    log_probs: Float[Array | NDArray[np.float32], "B N"]


def policy_loss(
    student_logits: Float[Array, "B N V"], tokens: Int[Array, "B N"], policy: PolicyLabels
) -> Float[Array, "B N"]:
    """-ρ A log Q(token), whose gradient raises what was better than its fellows.

    ρ = min(Q(token) / drawn probability, 2), a constant, corrects for samples drawn at another temperature or in
    another precision. It is 1 for the student's own distribution; for completions of one token, and up to its bound,
    the gradient is exactly that of the expected reward, and of longer ones what PPO's first step takes.

    References:
      Williams, 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement learning";
      Ionides, 2008, "Truncated Importance Sampling", for the bound.
    """
    log_q = -cross_entropy(student_logits, tokens)
    ratio = jnp.exp(jnp.minimum(jax.lax.stop_gradient(log_q) - policy.log_probs, np.log(_LARGEST_RATIO)))
    return -ratio * policy.advantages * log_q


def scaled_advantages(
    advantages: NDArray[np.float64], lengths: NDArray[np.int32], num_tokens: int, normalization: Normalization
) -> NDArray[np.float32]:
    """Advantages of each token, such that a loss averaged over tokens is the mean over samples of sums over tokens.

    The gradient of the expected reward has the sum of a sample's tokens; the losses beside it are averages.

    Args:
      advantages: [B].
      lengths: Tokens of each sample, [B], at least 1.
      num_tokens: N.
      normalization: How the loss is averaged.

    Returns:
      float32 [B, N].
    """
    counts = lengths if normalization == "sequence" else np.full(len(lengths), lengths.sum() / len(lengths))
    return np.repeat((advantages * counts).astype(np.float32)[:, None], num_tokens, axis=1)
