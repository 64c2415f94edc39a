"""The keys and values of tokens already read, at full length in every layer.

```
keys, values   [L, B, K, S, H]   rotated keys; the S slots of one head lie together, as attention reads them
positions      [B, S]            position of the token in each slot, -1 where the slot is empty or holds padding
length         []                slots written; the next token of every row goes here
```
The layer scan carries both arrays, so that XLA writes a token's slot in place. Sliding layers keep all slots here (the
reference); the runtime keeps a ring of `sliding_window`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from attar.engine.config import ModelConfig


class KVCache(NamedTuple):
    """A batch of sequences in progress; a JAX pytree."""

    keys: Float[Array, "L B K S H"]
    values: Float[Array, "L B K S H"]
    positions: Int[Array, "B S"]
    length: Int[Array, ""]


def init_cache(config: ModelConfig, batch: int, slots: int, dtype: DTypeLike = jnp.float32) -> KVCache:
    """An empty cache for `batch` sequences of up to `slots` tokens, padding included."""
    shape = (config.num_hidden_layers, batch, config.num_key_value_heads, slots, config.head_dim)
    return KVCache(
        keys=jnp.zeros(shape, dtype),
        values=jnp.zeros(shape, dtype),
        positions=jnp.full((batch, slots), -1, jnp.int32),
        length=jnp.zeros((), jnp.int32),
    )


def grow_cache(cache: KVCache, slots: int) -> KVCache:
    """The same cache with room for `slots` tokens in all."""
    extra = slots - cache.positions.shape[1]
    widen = ((0, 0), (0, 0), (0, 0), (0, extra), (0, 0))
    return KVCache(
        keys=jnp.pad(cache.keys, widen),
        values=jnp.pad(cache.values, widen),
        positions=jnp.pad(cache.positions, ((0, 0), (0, extra)), constant_values=-1),
        length=cache.length,
    )


def write_positions(cache: KVCache, positions: Int[Array, "B T"]) -> Int[Array, "B S"]:
    """The cache's positions with those of T new tokens written from slot `length` on."""
    return jax.lax.dynamic_update_slice_in_dim(cache.positions, positions, cache.length, axis=1)


def write_layer(
    stacked: Float[Array, "L B K S H"], new: Float[Array, "B K T H"], layer: Int[Array, ""], length: Int[Array, ""]
) -> Float[Array, "L B K S H"]:
    """Keys or values of all layers with those of T new tokens written into one layer from slot `length` on."""
    zero = jnp.zeros_like(length)
    return jax.lax.dynamic_update_slice(stacked, new[None].astype(stacked.dtype), (layer, zero, zero, length, zero))
