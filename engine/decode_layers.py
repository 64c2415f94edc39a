"""A step of decoding through all layers, by one function of attar's own (`csrc`) that XLA calls on a CPU.

As XLA's own a step is some twenty functions a layer, most of them over in microseconds; each product packs its matrix
and wakes the other threads anew, and attention reads every slot of the cache, written or not.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from attar.engine.config import ModelConfig
from attar.engine.kv_cache import KVCache
from attar.engine.xla_library import DECODE_LAYERS, suits_one_cpu

MAX_ROWS = 32
"""Beyond, XLA's own products are about as fast."""
_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
          "q_norm", "k_norm")  # fmt: skip


def suits(layers: dict[str, Any], x: Array, cache: KVCache) -> bool:
    """Whether a step x [B, 1, D] is better taken here: few rows on one CPU, all in float32, the library installed."""
    arrays = (*layers.values(), x, cache.keys, cache.values)
    few = x.shape[1] == 1 and x.shape[0] <= MAX_ROWS
    return few and all(array.dtype == jnp.float32 for array in arrays) and suits_one_cpu()


def decode_layers(
    layers: dict[str, Array],
    config: ModelConfig,
    x: Float[Array, "B 1 D"],
    ropes: Float[Array, "kinds 2 B 1 half"],
    positions: Int[Array, "B 1"],
    key_positions: Int[Array, "B S"],
    cache: KVCache,
    windows_and_kinds: Int[np.ndarray, "L 2"],
) -> tuple[Float[Array, "B 1 D"], tuple[Array, Array]]:
    """Runs all layers on one token of every row; not differentiable.

    Rows on padding (position -1) see nothing and give states without meaning. A row gives the same bits alone and among
    others, on any number of threads.

    Args:
      layers: Weights, stacked.
      x: Embedded tokens.
      ropes: Of `rope_tables`.
      key_positions: With this step's tokens; slots behind theirs are not read.
      cache: Before this step.
      windows_and_kinds: Of `layer_windows` and `layer_kinds`.

    Returns:
      The last layer's output before the final norm, and keys and values of all layers with this step's.
    """
    L = config.num_hidden_layers
    constants = np.array(
        [
            config.rms_norm_eps,
            1.0 if config.norm_plus_one else 0.0,
            config.query_scale,
            config.attn_logit_softcapping or 0.0,
            0.0 if config.hidden_activation == "silu" else 1.0,
        ],
        np.float32,
    )
    absent = np.zeros((L, 0), np.float32)
    struct = [jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in (x[:, 0], cache.keys, cache.values)]  # type: ignore[no-untyped-call]  # jax leaves it without types
    call = jax.ffi.ffi_call(DECODE_LAYERS, struct, input_output_aliases={0: 0, 7: 1, 8: 2})
    hidden, keys, values = call(
        x[:, 0], ropes[:, :, :, 0], positions[:, 0], key_positions, cache.length, windows_and_kinds.astype(np.int32),
        constants, cache.keys, cache.values, *(layers[name] for name in _MATRICES),
        *(layers.get(name, absent) for name in _NORMS),
    )  # fmt: skip
    return hidden[:, None], (keys, values)
