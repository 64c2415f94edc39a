"""Rotary position embeddings with half-split pairing: element j turns with element j + H/2."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from attar.engine.config import LayerType, ModelConfig, RopeScaling

LAYER_TYPES: tuple[LayerType, ...] = ("full_attention", "sliding_attention")


def inverse_frequencies(config: ModelConfig, layer_type: LayerType) -> NDArray[np.float32]:
    """Radians per position of each rotated pair, float32 [H/2], for one kind of layer.

    Frequency scaling applies to full-attention layers only, as in Gemma 3.
    """
    local = layer_type == "sliding_attention"
    theta = config.rope_local_base_freq if local else config.rope_theta
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    frequencies = (1.0 / np.float64(theta) ** exponents).astype(np.float32)
    return frequencies if local or config.rope_scaling is None else scale_frequencies(frequencies, config.rope_scaling)


def scale_frequencies(frequencies: NDArray[np.float32], scaling: RopeScaling) -> NDArray[np.float32]:
    """Frequencies for a context longer than the one that was trained first, float32 [H/2].

    References:
      `llama3`: transformers `modeling_rope_utils._compute_llama3_parameters`. Wavelengths above
      original / low_freq_factor are stretched, those below original / high_freq_factor are kept, and between them
      the two are blended linearly in original / wavelength.
    """
    stretched = frequencies / np.float32(scaling.factor)
    if scaling.rope_type == "linear":
        return stretched
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    blended: NDArray[np.float32] = ((1 - kept) * stretched + kept * frequencies).astype(np.float32)
    return blended


def rope_tables(config: ModelConfig, positions: Int[Array, "B T"]) -> Float[Array, "kinds 2 B T half"]:
    """Cosines and sines for full (row 0) and sliding layers (row 1), float32 [2, 2, B, T, H/2].

    A model without sliding layers has one row, so that the second is not computed for nothing.
    """
    kinds = LAYER_TYPES if "sliding_attention" in config.layer_types else LAYER_TYPES[:1]
    frequencies = jnp.asarray(np.stack([inverse_frequencies(config, kind) for kind in kinds]))  # [kinds, H/2]
    angles = positions.astype(jnp.float32)[None, :, :, None] * frequencies[:, None, None, :]  # [kinds, B, T, H/2]
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)  # [kinds, 2, B, T, H/2]


def apply_rope(x: Float[Array, "B T heads H"], table: Float[Array, "2 B T half"]) -> Float[Array, "B T heads H"]:
    """Turns each pair of x by its angle, in float32, cast back to x's dtype.

    References:
      Su et al., 2021, arXiv:2104.09864, eq. 34, with the pairing of GPT-NeoX.
    """
    cos, sin = table[0][:, :, None, :], table[1][:, :, None, :]  # [B, T, 1, H/2]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)  # 2 x [B, T, heads, H/2]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)  # [B, T, heads, H]
