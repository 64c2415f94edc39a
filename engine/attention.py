"""Grouped-query attention with a soft cap and a sliding window, masked by position rather than by slot.

A padding token has position -1. Because visibility depends on positions alone, left padding, right padding and a
cache whose slots are not in order need no case of their own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from attar.engine.layers import soft_cap

# Wider than any context: a full-attention layer is a sliding one with this window.
UNLIMITED_WINDOW = 2**30
# Finite, so that a row without visible keys (padding) gives a number instead of NaN and its gradient is zero.
_MASKED_SCORE = -1e30


def visible_keys(
    query_positions: Int[Array, "B T"], key_positions: Int[Array, "B S"], window: int | Int[Array, ""]
) -> Bool[Array, "B T S"]:
    """True where a query sees a key: not padding, not later, and among the `window` latest, itself included."""
    distance = query_positions[:, :, None] - key_positions[:, None, :]  # [B, T, S]
    return (key_positions[:, None, :] >= 0) & (distance >= 0) & (distance < window)


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    visible: Bool[Array, "B T S"],
    *,
    scale: float,
    cap: float | None,
) -> Float[Array, "B T N H"]:
    """softmax(cap(scale * q k^T) masked) v, with scores and softmax in float32.

    Query head n reads KV head n // G, G = N / K: the G heads and T tokens of one KV head become the rows of one
    matrix product. The cap comes before the mask: after it, a masked score would become -cap and leak probability.

    References:
      Ainslie et al., 2023, arXiv:2305.13245 (grouped queries); Gemma 2 report, arXiv:2408.00118 (cap).
    """
    B, T, N, H = q.shape
    K = k.shape[1]
    G = N // K
    scaled = (q * jnp.asarray(scale, q.dtype)).reshape(B, T, K, G, H)
    rows = scaled.transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    scores = jnp.einsum("bkrh,bksh->bkrs", rows, k, preferred_element_type=jnp.float32)  # [B, K, G * T, S]
    scores = soft_cap(scores, cap).reshape(B, K, G, T, -1)
    scores = jnp.where(visible[:, None, None], scores, _MASKED_SCORE)  # [B, K, G, T, S]
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(B, K, G * T, -1)
    attended = jnp.einsum("bkrs,bksh->bkrh", weights, v)  # [B, K, G * T, H]
    return attended.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
