"""Quantisation in training: weights rounded in the forward pass, gradients that pass straight through.

`fake_quantize` computes what `dequantize(name, quantize(name, weights))` of `attar.quantize.blocks` gives, bit for bit
and on the device, so that training sees the weights that `attar quantize` and `attar export` will store.

References:
  Bengio et al., 2013, arXiv:1308.3432, section 4, for the straight-through estimator; Jacob et al., 2018,
  arXiv:1712.05877, section 3, for rounding the weights in training.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attar.engine.gguf_blocks import FORMATS


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def fake_quantize(name: str, weights: Float[Array, "*rows cols"]) -> Float[Array, "*rows cols"]:
    """Rounds float32 weights to what a block format can hold; its derivative is taken to be the identity.

    A block with a scale beyond float16 becomes infinite or NaN, where `quantize` refuses the weights.

    Args:
      name: One of FAKE_QUANTIZED.
      weights: Blocks run along the last axis, a multiple of the format's block.

    Raises:
      ValueError: If the format is not one of them or the columns do not fit.
    """
    if name not in _ROUNDED:
        raise ValueError(f"format must be one of {', '.join(_ROUNDED)}, got {name!r}")
    cols = weights.shape[-1]
    FORMATS[name].row_bytes(cols)  # refuses columns that the blocks do not divide
    blocks = weights.reshape(*weights.shape[:-1], -1, FORMATS[name].block_cols)  # [..., cols / block, block]
    return _ROUNDED[name](blocks).reshape(weights.shape)


@fake_quantize.defjvp
def _straight_through(name: str, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return fake_quantize(name, *primals), tangents[0]


def _half(values: Array) -> Array:
    """Rounded to float16, in which scales are stored."""
    return values.astype(jnp.float16).astype(jnp.float32)


def _divide(values: Array, divisor: float) -> Array:
    """A division that the compiler turns neither into a product nor, with the inverse taken of it, into another."""
    return _barrier(values / _barrier(jnp.full_like(values, divisor)))


def _barrier(values: Array) -> Array:
    held: Array = jax.lax.optimization_barrier(values)  # type: ignore[no-untyped-call]  # jax leaves it without types
    return held


def _inverse(scales: Array) -> Array:
    inverse = 1.0 / scales
    return jnp.where(jnp.isfinite(inverse), inverse, 0.0)


def _signed_extreme(blocks: Array) -> Array:
    """The value of largest magnitude of each block, with its sign (the first of equals): [..., 1]."""
    magnitudes = jnp.abs(blocks)
    where = jnp.argmax(magnitudes, axis=-1, keepdims=True)
    return jnp.take_along_axis(blocks, where, axis=-1)


def _scaled(blocks: Array, scales: Array) -> Array:
    """blocks / scales by the inverse, in steps: at most 128 in magnitude, and rounded before anything is added."""
    return _unfused(blocks * _inverse(scales), below=-256.0)


def _unfused(product: Array, below: float) -> Array:
    """A product all of whose values are above `below`: no compiler fuses a maximum of it with a sum that follows."""
    return jnp.maximum(product, below)


def _round_q8_0(blocks: Array) -> Array:
    scales = _divide(jnp.max(jnp.abs(blocks), axis=-1, keepdims=True), 127.0)
    scaled = _scaled(blocks, scales)
    magnitude = jnp.abs(scaled)
    whole = jnp.floor(magnitude)  # half away from zero, as C's roundf
    codes = jnp.copysign(whole + (magnitude - whole >= 0.5).astype(jnp.float32), scaled)
    return _half(scales) * codes.astype(jnp.int8).astype(jnp.float32)  # integers have no -0


def _round_signed(bits: int, blocks: Array) -> Array:
    """Q4_0 and Q5_0: codes from -2^(bits-1), which the largest takes, to 2^(bits-1) - 1."""
    middle = float(1 << (bits - 1))
    scales = _divide(_signed_extreme(blocks), -middle)
    codes = jnp.minimum(jnp.trunc(_scaled(blocks, scales) + (middle + 0.5)), 2.0 * middle - 1.0)
    return _half(scales) * (codes - middle)


def _round_q4_1(blocks: Array) -> Array:
    low = jnp.min(blocks, axis=-1, keepdims=True)
    scales = _divide(jnp.max(blocks, axis=-1, keepdims=True) - low, 15.0)
    codes = jnp.minimum(jnp.trunc(_scaled(blocks - low, scales) + 0.5), 15.0)
    return _unfused(_half(scales) * codes, below=-1.0) + _half(low)


def _as_stored(dtype: type, blocks: Array) -> Array:
    return blocks.astype(dtype).astype(jnp.float32)


_ROUNDED: dict[str, Callable[[Array], Array]] = {
    "F32": lambda blocks: blocks,
    "F16": partial(_as_stored, jnp.float16),
    "BF16": partial(_as_stored, jnp.bfloat16),
    "Q8_0": _round_q8_0,
    "Q4_0": partial(_round_signed, 4),
    "Q4_1": _round_q4_1,
    "Q5_0": partial(_round_signed, 5),
}

# Formats that `fake_quantize` knows: those that `attar.quantize.blocks.quantize` writes.
FAKE_QUANTIZED: tuple[str, ...] = tuple(_ROUNDED)
