"""One decoder for Gemma 2, Gemma 3 (text) and Llama: pure functions from a config and a pytree of weights.

```
Params = {
  "embed_tokens": [V, D], "norm": [D], ("lm_head": [V, D],)
  "layers": {"q_proj": [L, N*H, D], "k_proj": [L, K*H, D], "v_proj": [L, K*H, D], "o_proj": [L, D, N*H],
             "gate_proj": [L, F, D], "up_proj": [L, F, D], "down_proj": [L, D, F],
             "input_layernorm": [L, D], "post_attention_layernorm": [L, D],
             ("pre_feedforward_layernorm": [L, D], "post_feedforward_layernorm": [L, D],)
             ("q_norm": [L, H], "k_norm": [L, H])}}
```
Layers are scanned, so that compile time does not grow with depth; what differs from layer to layer (the window, the
RoPE table) is a scalar that is scanned along. Activations have the dtype of `embed_tokens`; norms, softmax and logits
are float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from attar.engine import decode_layers, few_rows
from attar.engine.attention import UNLIMITED_WINDOW, attend, visible_keys
from attar.engine.config import ModelConfig
from attar.engine.kv_cache import KVCache, write_layer, write_positions
from attar.engine.layers import Layer, embed, gated_mlp, head_logits, linear, rms_norm, soft_cap
from attar.engine.rope import apply_rope, rope_tables
from attar.engine.sharding import constrain_rows, gather_weights

Params = dict[str, Any]
# Keys and values of all layers, [L, B, K, S, H] each; None where nothing is cached.
_Cached = tuple[Array, Array] | None
# (rotated q [B, T, N, H], rotated k [B, T, K, H], v [B, T, K, H]) -> attended values [B, T, N, H], new cache
_Attention = Callable[[Array, Array, Array], tuple[Array, _Cached]]


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each weight of one layer, by Hugging Face name."""
    D, F, H = config.hidden_size, config.intermediate_size, config.head_dim
    heads, kv_heads = config.num_attention_heads * H, config.num_key_value_heads * H
    shapes: dict[str, tuple[int, ...]] = {
        "q_proj": (heads, D),
        "k_proj": (kv_heads, D),
        "v_proj": (kv_heads, D),
        "o_proj": (D, heads),
        "gate_proj": (F, D),
        "up_proj": (F, D),
        "down_proj": (D, F),
        "input_layernorm": (D,),
        "post_attention_layernorm": (D,),
    }
    if config.use_post_norms:
        shapes |= {"pre_feedforward_layernorm": (D,), "post_feedforward_layernorm": (D,)}
    if config.use_qk_norm:
        shapes |= {"q_norm": (H,), "k_norm": (H,)}
    return shapes


def param_shapes(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> Params:
    """The parameter pytree with shapes and dtypes in place of arrays."""

    def struct(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]  # jax leaves it without types

    layers = {name: struct(config.num_hidden_layers, *shape) for name, shape in layer_shapes(config).items()}
    table = struct(config.vocab_size, config.hidden_size)
    shapes: Params = {"embed_tokens": table, "layers": layers, "norm": struct(config.hidden_size)}
    return shapes if config.tie_word_embeddings else {**shapes, "lm_head": table}


def init_params(config: ModelConfig, key: Array, dtype: DTypeLike = jnp.float32) -> Params:
    """Random weights: matrices normal with deviation 0.02, branch outputs smaller by sqrt(2 L), norms neutral.

    References:
      Radford et al., 2019 (GPT-2), section 2.3, for the factor on matrices that write to the residual stream.
    """
    residual_scale = (2 * config.num_hidden_layers) ** -0.5
    neutral = 0.0 if config.norm_plus_one else 1.0

    def init_one(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, leaf_key: Array) -> Array:
        name = path[-1].key
        if "norm" in name:
            return jnp.full(leaf.shape, neutral, leaf.dtype)
        deviation = 0.02 * (residual_scale if name in ("o_proj", "down_proj") else 1.0)
        return (deviation * jax.random.normal(leaf_key, leaf.shape)).astype(leaf.dtype)

    shapes = param_shapes(config, dtype)
    paths, tree = jax.tree_util.tree_flatten_with_path(shapes)
    keys = jax.random.split(key, len(paths))
    leaves = [init_one(path, leaf, keys[i]) for i, (path, leaf) in enumerate(paths)]
    return jax.tree_util.tree_unflatten(tree, leaves)  # type: ignore[no-any-return]  # a tree of Params' structure


def layer_windows(config: ModelConfig) -> list[int]:
    """Keys that a query of each layer sees, itself included; UNLIMITED_WINDOW on full-attention layers."""
    window = config.sliding_window or UNLIMITED_WINDOW
    return [window if kind == "sliding_attention" else UNLIMITED_WINDOW for kind in config.layer_types]


def layer_kinds(config: ModelConfig) -> list[int]:
    """Row of `rope_tables` that each layer uses."""
    return [int(kind == "sliding_attention") for kind in config.layer_types]


def token_positions(tokens: Int[Array, "B T"], padding_mask: Bool[Array, "B T"] | None) -> Int[Array, "B T"]:
    """Position of each token among the real tokens of its row; -1 on padding (mask False)."""
    if padding_mask is None:
        return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    counts = jnp.cumsum(padding_mask.astype(jnp.int32), axis=1)
    return jnp.where(padding_mask, counts - 1, -1)


def segment_positions(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Position of each token in its segment, a run of equal ids; -1 on padding (id 0)."""
    columns = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
    begins = jnp.concatenate(
        [jnp.ones_like(segment_ids[:, :1], bool), segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1
    )  # [B, T]
    first = jax.lax.cummax(jnp.where(begins, columns, 0), axis=1)  # [B, T], column where the token's segment begins
    return jnp.where(segment_ids > 0, columns - first, -1)


def _attention_branch(
    config: ModelConfig,
    layer: Layer,
    x: Float[Array, "B T D"],
    rope: Float[Array, "2 B T half"],
    attention: _Attention,
    last: int,
) -> tuple[Float[Array, "B last D"], _Cached]:
    B, T, _ = x.shape
    eps, plus_one, H = config.rms_norm_eps, config.norm_plus_one, config.head_dim
    q = linear(x[:, T - last :], layer["q_proj"]).reshape(B, last, config.num_attention_heads, H)
    k = linear(x, layer["k_proj"]).reshape(B, T, config.num_key_value_heads, H)
    v = linear(x, layer["v_proj"]).reshape(B, T, config.num_key_value_heads, H)
    if config.use_qk_norm:
        q, k = rms_norm(q, layer["q_norm"], eps, plus_one), rms_norm(k, layer["k_norm"], eps, plus_one)
    attended, cached = attention(apply_rope(q, rope[:, :, T - last :]), apply_rope(k, rope), v)  # [B, last, N, H]
    return linear(attended.reshape(B, last, -1), layer["o_proj"]), cached  # [B, last, D]


def decoder_layer(
    config: ModelConfig,
    layer: Layer,
    x: Float[Array, "B T D"],
    rope: Float[Array, "2 B T half"],
    attention: _Attention,
    last: int | None = None,
) -> tuple[Float[Array, "B last D"], _Cached]:
    """One layer: attention and MLP branches, each normed before (and in Gemma after), added to the stream.

    Args:
      last: So many of the last columns go on; the others are keys and values for them. None means all.
    """
    last = x.shape[1] if last is None else last
    norm = partial(rms_norm, eps=config.rms_norm_eps, plus_one=config.norm_plus_one)
    branch, cached = _attention_branch(config, layer, norm(x, layer["input_layernorm"]), rope, attention, last)
    x = x[:, x.shape[1] - last :]
    if config.use_post_norms:
        branch = norm(branch, layer["post_attention_layernorm"])
    x = x + branch
    # Llama calls the norm before the MLP "post attention"; with post-norms that name belongs to the branch norm.
    before_mlp = "pre_feedforward_layernorm" if config.use_post_norms else "post_attention_layernorm"
    branch = gated_mlp(norm(x, layer[before_mlp]), layer, config.hidden_activation)
    if config.use_post_norms:
        branch = norm(branch, layer["post_feedforward_layernorm"])
    return x + branch, cached


def _scan_layers(
    params: Params,
    config: ModelConfig,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    key_positions: Int[Array, "B S"],
    cache: KVCache | None,
    remat: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
    last: int | None = None,
) -> tuple[Float[Array, "B last D"], _Cached]:
    """Embeds the tokens and runs all layers and the final norm, with or without a cache.

    With `last`, the last layer computes no more than so many columns need, and stands behind the scan.
    """
    together = None if segment_ids is None else segment_ids[:, :, None] == segment_ids[:, None, :]  # [B, T, T]
    ropes = rope_tables(config, positions)  # [kinds, 2, B, T, H/2]
    attend_scaled = partial(attend, scale=config.query_scale, cap=config.attn_logit_softcapping)

    def step(carry: tuple[Array, _Cached], scanned: Any, last: int | None = None) -> tuple[tuple[Array, _Cached], None]:
        x, cached = carry
        layer, index, window, kind = scanned  # weights of one layer, and three scalars
        visible = visible_keys(positions, key_positions, window)
        if together is not None:
            visible &= together
        if last is not None:
            visible = visible[:, visible.shape[1] - last :]

        def attention(q: Array, k: Array, v: Array) -> tuple[Array, _Cached]:
            k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)  # [B, K, T, H]
            if cache is None or cached is None:
                return attend_scaled(q, k, v, visible), None
            keys, values = (write_layer(old, new, index, cache.length) for old, new in zip(cached, (k, v), strict=True))
            return attend_scaled(q, keys[index].astype(q.dtype), values[index].astype(q.dtype), visible), (keys, values)

        x, cached = decoder_layer(config, layer, x, ropes[kind], attention, last)
        return (constrain_rows(x), cached), None

    table = gather_weights({"embed_tokens": params["embed_tokens"]}, config)["embed_tokens"]
    x = constrain_rows(embed(table, tokens, config.scale_embeddings))
    per_layer = np.array([range(config.num_hidden_layers), layer_windows(config), layer_kinds(config)], np.int32)
    start: tuple[Array, _Cached] = (x, None if cache is None else (cache.keys, cache.values))
    cached: _Cached
    if cache is not None and decode_layers.suits(params["layers"], x, cache):
        x, cached = decode_layers.decode_layers(
            params["layers"], config, x, ropes, positions, key_positions, cache, per_layer[1:].T
        )
    elif last is None:
        policy = None if remat else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        scanned = (params["layers"], *per_layer)
        (x, cached), _ = jax.lax.scan(jax.checkpoint(step, prevent_cse=False, policy=policy), start, scanned)
    else:
        before, _ = jax.lax.scan(
            lambda carry, at: step(carry, (_layer_at(params, at[0]), *at)), start, per_layer.T[:-1]
        )
        (x, cached), _ = step(before, (_layer_at(params, config.num_hidden_layers - 1), *per_layer[:, -1]), last)
    return rms_norm(x, params["norm"], config.rms_norm_eps, config.norm_plus_one), cached


def _layer_at(params: Params, index: Array | int) -> Layer:
    """One layer's weights. Slices of the stacked ones, as a scan takes them, would be copies of all but the last."""
    layer: Layer = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), params["layers"]
    )
    return layer


def hidden_states(
    params: Params,
    config: ModelConfig,
    tokens: Int[Array, "B T"],
    *,
    padding_mask: Bool[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    remat: bool = False,
    last: int | None = None,
) -> Float[Array, "B last D"]:
    """Normed output of the last layer for whole sequences, without a cache.

    Args:
      tokens: Token ids; the value under padding does not matter.
      padding_mask: True on real tokens, wherever the padding stands; None means no padding. Positions count real
        tokens, so a left-padded row gives the same states as the row without padding. States on padding are
        finite and meaningless.
      segment_ids: In place of a padding mask where rows hold several sequences: the tokens of one are a run of equal
        ids above 0, and padding is 0. Each gives the states that it gives alone: its positions start at 0, and it
        sees no other.
      remat: Recompute each layer in the backward pass instead of keeping its activations.
      last: Return the states of so many last columns alone, for constant weights: the last layer then works on no
        others, but a gradient with respect to weights would be slow. None returns all T.

    Raises:
      ValueError: If both a padding mask and segment ids are given.
    """
    if segment_ids is None:
        positions = token_positions(tokens, padding_mask)
    elif padding_mask is None:
        positions = segment_positions(segment_ids)
    else:
        raise ValueError("padding_mask and segment_ids must not both be given: segment 0 is padding")
    return _scan_layers(params, config, tokens, positions, positions, None, remat, segment_ids, last)[0]


def head_table(params: Params, config: ModelConfig) -> Float[Array, "V D"]:
    """The matrix that projects to the vocabulary: the embeddings where they are tied."""
    table: Array = params["embed_tokens" if config.tie_word_embeddings else "lm_head"]
    return table


def project_logits(
    params: Params, config: ModelConfig, hidden: Float[Array, "*batch D"], *, constant: bool = False
) -> Float[Array, "*batch V"]:
    """Logits of hidden states, float32, soft-capped where the family caps them.

    Costs 2 * D * V operations a position: select the positions that count before calling it.

    Args:
      constant: Nothing is differentiated.
    """
    table = head_table(params, config)
    if constant and table.dtype == hidden.dtype and few_rows.suits(math.prod(hidden.shape[:-1]), table.dtype):
        return soft_cap(few_rows.product(hidden, table), config.final_logit_softcapping)
    return head_logits(hidden, table, config.final_logit_softcapping)


def forward(
    params: Params,
    config: ModelConfig,
    tokens: Int[Array, "B T"],
    *,
    padding_mask: Bool[Array, "B T"] | None = None,
    remat: bool = False,
) -> Float[Array, "B T V"]:
    """Logits of the token after each position, float32; arguments as in `hidden_states`."""
    return project_logits(params, config, hidden_states(params, config, tokens, padding_mask=padding_mask, remat=remat))


def cached_hidden_states(
    params: Params,
    config: ModelConfig,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    cache: KVCache,
    last: int | None = None,
) -> tuple[Float[Array, "B last D"], KVCache]:
    """Reads T tokens after those in the cache: a prefill (T > 1) or a decode step (T = 1).

    Args:
      tokens: Token ids, appended to the cache from slot `cache.length` on; the caller sees to it that they fit.
      positions: Position of each token, -1 on padding.
      last: So many of the last columns' hidden states are wanted; None means all T.

    Returns:
      Normed hidden states of these tokens, and the cache that contains them.
    """
    key_positions = write_positions(cache, positions)  # [B, S]
    hidden, cached = _scan_layers(params, config, tokens, positions, key_positions, cache, last=last)
    assert cached is not None  # as a cache went in
    return hidden, KVCache(*cached, key_positions, cache.length + tokens.shape[1])
