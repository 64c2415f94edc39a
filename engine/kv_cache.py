"""The keys and values of tokens already read, at full length in every layer.

```
keys[l]      [B, S, K, H]   rotated keys of layer l, one slot a token
values[l]    [B, S, K, H]
positions    [B, S]         position of the token in each slot, -1 where the slot is empty or holds padding
length       []             slots written; the next token of every row goes here
```
Layers are separate arrays, not one stacked: a decode step then updates each in place and reads it without a copy.
Sliding layers keep all slots here (the reference); the runtime keeps a ring of `sliding_window`.
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

    keys: tuple[Float[Array, "B S K H"], ...]
    values: tuple[Float[Array, "B S K H"], ...]
    positions: Int[Array, "B S"]
    length: Int[Array, ""]


def init_cache(config: ModelConfig, batch: int, slots: int, dtype: DTypeLike = jnp.float32) -> KVCache:
    """An empty cache for `batch` sequences of up to `slots` tokens, padding included."""
    shape = (batch, slots, config.num_key_value_heads, config.head_dim)
    layers = range(config.num_hidden_layers)
    return KVCache(
        keys=tuple(jnp.zeros(shape, dtype) for _ in layers),
        values=tuple(jnp.zeros(shape, dtype) for _ in layers),
        positions=jnp.full((batch, slots), -1, jnp.int32),
        length=jnp.zeros((), jnp.int32),
    )


def write_slots(
    cache: Float[Array, "B S K H"], new: Float[Array, "B T K H"], length: Int[Array, ""]
) -> Float[Array, "B S K H"]:
    """The cache of one layer with T tokens written from slot `length` on."""
    return jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), length, axis=1)


def write_positions(cache: KVCache, positions: Int[Array, "B T"]) -> Int[Array, "B S"]:
    """The cache's positions with those of T new tokens written from slot `length` on."""
    return jax.lax.dynamic_update_slice_in_dim(cache.positions, positions, cache.length, axis=1)


def grow_cache(cache: KVCache, slots: int) -> KVCache:
    """The same cache with room for `slots` tokens in all."""
    extra = slots - cache.positions.shape[1]
    widen = ((0, 0), (0, extra), (0, 0), (0, 0))
    return KVCache(
        keys=tuple(jnp.pad(k, widen) for k in cache.keys),
        values=tuple(jnp.pad(v, widen) for v in cache.values),
        positions=jnp.pad(cache.positions, widen[:2], constant_values=-1),
        length=cache.length,
    )
