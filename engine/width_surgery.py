"""Narrower models cut from wider ones: the named heads, neurons and channels, and nothing else.

Leaving out parts that are zero throughout leaves the function as it was; RMSNorm's mean over fewer channels and
Gemma's factor on embeddings are made up for.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from attar.engine.config import ModelConfig
from attar.engine.transformer import Params

Indices = NDArray[np.int64]


def keep_heads(
    config: ModelConfig, params: Params, kv_heads: Indices, query_heads: Indices
) -> tuple[ModelConfig, Params]:
    """Keeps KV heads and, of the query heads that read each, equally many.

    Args:
      kv_heads: [L, K'], indices into the KV heads of each layer.
      query_heads: [L, K', G'], indices into all query heads of the layer; those in place (l, k) must read KV head
        kv_heads[l, k].

    Raises:
      ValueError: If a query head does not read its KV head.
    """
    L, K = kv_heads.shape
    if not np.array_equal(
        query_heads // config.num_query_groups, np.broadcast_to(kv_heads[..., None], query_heads.shape)
    ):
        raise ValueError("query_heads must read the KV head in whose place they stand")
    queries, H = query_heads.reshape(L, -1), config.head_dim
    layers = dict(params["layers"])
    for name, heads in (("q_proj", queries), ("k_proj", kv_heads), ("v_proj", kv_heads)):
        rows = np.asarray(layers[name]).reshape(L, -1, H, config.hidden_size)
        layers[name] = jnp.asarray(_take(rows, heads, axis=1).reshape(L, -1, config.hidden_size))
    columns = np.asarray(layers["o_proj"]).reshape(L, config.hidden_size, -1, H)
    layers["o_proj"] = jnp.asarray(_take(columns, queries, axis=2).reshape(L, config.hidden_size, -1))
    narrower = config.replace(num_attention_heads=queries.shape[1], num_key_value_heads=K)
    return narrower, {**params, "layers": layers}


def keep_neurons(config: ModelConfig, params: Params, neurons: Indices) -> tuple[ModelConfig, Params]:
    """Keeps neurons of the MLPs: [L, F'], indices into those of each layer."""
    layers = dict(params["layers"])
    for name, axis in (("gate_proj", 1), ("up_proj", 1), ("down_proj", 2)):
        layers[name] = jnp.asarray(_take(np.asarray(layers[name]), neurons, axis))
    return config.replace(intermediate_size=neurons.shape[1]), {**params, "layers": layers}


def keep_channels(
    config: ModelConfig,
    params: Params,
    channels: Indices,
    layer_ratios: Mapping[str, NDArray[np.float64]],
    final_ratio: float,
) -> tuple[ModelConfig, Params]:
    """Keeps channels of the residual stream.

    A norm divides by the root mean square over the channels that are left, which is another number than that over
    all. Its weight is multiplied by the ratio of the two, so that what follows sees values of the size it knew.

    Args:
      channels: [D'], indices into the channels.
      layer_ratios: By the name of a norm [L]: the root mean square over the kept channels divided by that over all.
        Channels that are always zero give sqrt(D / D').
      final_ratio: The same of the last norm.
    """
    D, kept = config.hidden_size, len(channels)
    layers = {}
    for name, stacked in params["layers"].items():
        weight = np.asarray(stacked)
        if name in layer_ratios:
            layers[name] = _scaled_norm(config, weight[:, channels], layer_ratios[name][:, None])
        elif name in ("o_proj", "down_proj"):
            layers[name] = jnp.asarray(weight[:, channels])
        else:
            layers[name] = jnp.asarray(weight if name in ("q_norm", "k_norm") else weight[:, :, channels])
    # Gemma multiplies embeddings by sqrt(hidden_size); a tied head must not see the correction.
    table_scale = (D / kept) ** 0.5 if config.scale_embeddings else 1.0
    head_scale = table_scale if config.tie_word_embeddings else 1.0
    cut: Params = {
        "embed_tokens": jnp.asarray(np.asarray(params["embed_tokens"])[:, channels] * np.float32(table_scale)),
        "norm": _scaled_norm(config, np.asarray(params["norm"])[channels], final_ratio / head_scale),
        "layers": layers,
    }
    if not config.tie_word_embeddings:
        cut["lm_head"] = jnp.asarray(np.asarray(params["lm_head"])[:, channels])
    # What is added to a mean over D' of D values must grow as that mean does when the others are zero.
    return config.replace(hidden_size=kept, rms_norm_eps=config.rms_norm_eps * D / kept), cut


def _take(weights: NDArray[np.float32], indices: Indices, axis: int) -> NDArray[np.float32]:
    """Entries of one axis, others in each layer: weights [L, ...], indices [L, n]."""
    return np.stack([np.take(weight, chosen, axis - 1) for weight, chosen in zip(weights, indices, strict=True)])


def _scaled_norm(config: ModelConfig, weight: NDArray[np.float32], factor: NDArray[np.float64] | float) -> jnp.ndarray:
    """The weight of a norm whose output is multiplied by a factor; Gemma's weights are deviations from 1."""
    offset = 1.0 if config.norm_plus_one else 0.0
    return jnp.asarray(((weight + offset) * factor - offset).astype(np.float32))
