"""Drawing tokens from logits, with the log-probability under the distribution that was drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Columns summed together by the first level of the inverse CDF: about the square root of a vocabulary.
_BLOCK = 256


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn: temperature first, then top-k, then top-p on what top-k left.

    Attributes:
      temperature: Divides the logits; 0 takes the most likely token (the lowest id among equals).
      top_k: Keeps the k most likely tokens; 0 keeps all.
      top_p: Keeps the most likely tokens until their mass reaches p; 1 keeps all.

    References:
      Holtzman et al., 2020, arXiv:1904.09751, section 3.1 (top-p).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0 (0 keeps all), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1] (1 keeps all), got {self.top_p}")


GREEDY = SamplingParams(temperature=0.0)


def sample_tokens(
    logits: Float[Array, "B V"], uniforms: Float[Array, " B"], sampling: SamplingParams
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Draws one token a row by inverting the CDF at `uniforms` in [0, 1).

    Inversion reads the probabilities once; `jax.random.categorical` draws V Gumbel variates a row instead, which on
    a CPU costs more than the model.

    Returns:
      Token ids, int32, and their log-probabilities in nats, float32, after temperature, top-k and top-p. Greedy
      choice has log-probability 0: it draws from a point mass.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), jnp.zeros(logits.shape[0], jnp.float32)
    scaled = logits.astype(jnp.float32) / sampling.temperature
    ids = None
    if sampling.top_k:
        scaled, ids = jax.lax.top_k(scaled, min(sampling.top_k, scaled.shape[-1]))  # [B, k], most likely first
    kept = scaled if sampling.top_p == 1 else _keep_top_p(scaled, sampling.top_p)
    log_probs = jax.nn.log_softmax(kept, axis=-1)  # -inf where dropped
    drawn = invert_cdf(jnp.exp(log_probs), uniforms)[:, None]  # [B, 1]
    tokens = drawn if ids is None else jnp.take_along_axis(ids, drawn, axis=1)
    return tokens[:, 0].astype(jnp.int32), jnp.take_along_axis(log_probs, drawn, axis=1)[:, 0]


def _keep_top_p(logits: Float[Array, "B V"], top_p: float) -> Float[Array, "B V"]:
    """Logits with -inf outside the smallest set of most likely tokens whose mass reaches top_p.

    The set is found as a threshold on probability, by bisection on the bits of a float32: positive floats order as
    their bit patterns do, so 31 passes find the exact value without sorting the vocabulary. Tokens as likely as
    the last one kept are kept too.
    """
    probs = jax.nn.softmax(logits, axis=-1)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # mass at or above `low` reaches top_p, mass at or above `high` does not
        middle = low + (high - low) // 2
        threshold = jax.lax.bitcast_convert_type(middle, jnp.float32)
        mass = jnp.sum(jnp.where(probs >= threshold[:, None], probs, 0.0), axis=-1)
        enough = mass >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    rows = logits.shape[:-1]
    above_one = int(np.float32(2.0).view(np.int32))
    bounds = jnp.zeros(rows, jnp.int32), jnp.full(rows, above_one, jnp.int32)
    low, _ = jax.lax.fori_loop(0, 31, halve, bounds)
    threshold = jax.lax.bitcast_convert_type(low, jnp.float32)
    return jnp.where(probs >= threshold[:, None], logits, -jnp.inf)


def invert_cdf(probs: Float[Array, "B V"], uniforms: Float[Array, " B"]) -> Int[Array, " B"]:
    """First index whose cumulative probability exceeds u; never one of probability 0.

    In two levels (blocks of the vocabulary, then inside one), because a cumulative sum over the whole vocabulary is
    many passes in XLA.
    """
    B, V = probs.shape
    blocks = jnp.pad(probs, ((0, 0), (0, -V % _BLOCK))).reshape(B, -1, _BLOCK)  # [B, V / 256, 256]
    block_cdf = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)  # [B, V / 256]
    target = uniforms * block_cdf[:, -1]
    block, before = _first_above(block_cdf, target)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]  # [B, 256]
    index, _ = _first_above(jnp.cumsum(inside, axis=-1), target - before)
    return block * _BLOCK + index


def _first_above(cdf: Float[Array, "B M"], target: Float[Array, " B"]) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """First column whose value exceeds the target, and the value before it (0 before the first).

    The target is brought below the last column first: rounding could lift it there, and a column that adds nothing
    must not be chosen.
    """
    below = jnp.minimum(target, jnp.nextafter(cdf[:, -1], jnp.zeros_like(target)))
    column = jnp.sum(cdf <= below[:, None], axis=-1, dtype=jnp.int32)
    previous = jnp.take_along_axis(cdf, jnp.maximum(column - 1, 0)[:, None], axis=1)[:, 0]
    return column, jnp.where(column > 0, previous, 0.0)
