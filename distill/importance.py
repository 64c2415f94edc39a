"""What a model's parts contribute on real text: the scores by which a student is cut from its teacher.

One pass without gradients over calibration rows gives

    block influence    of some layers in a row, 1 - cosine similarity of the residual stream before and after them

and another, for every layer,

    heads              size of what a query head adds to the attention branch, ‖a_h W_O,h‖
    neurons            |activation| of a neuron of the gated MLP times the length of the column that it writes with
    channels           |output| of the norms that read the residual stream

each the mean over a row's tokens; rows are combined by their L2 norm (influence by the mean).

References:
  Men et al., 2024 (ShortGPT), arXiv:2403.03853, section 3.1, for block influence; Gromov et al., 2024,
  arXiv:2403.17887, section 3, for layers in a row. Muralidharan et al., 2024
  (Minitron), arXiv:2407.14679, section 2.2, for the others and their combination; the weights that read an activation
  are added here, so that what nothing reads counts as nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import NDArray

from attar.engine.attention import attend, visible_keys
from attar.engine.config import ModelConfig
from attar.engine.layers import Layer, activate, embed, linear, rms_norm
from attar.engine.rope import rope_tables
from attar.engine.transformer import Params, decoder_layer, layer_kinds, layer_windows, token_positions

CalibrationRows = tuple[NDArray[np.int32], NDArray[np.bool_]]
"""Token ids [B, T], and True on real tokens."""


class Importance(NamedTuple):
    """Scores of a model's parts; the larger, the more is lost without the part.

    Attributes:
      heads: Of each query head, [L, N].
      neurons: Of each neuron of the MLP, [L, F].
      channels: Of each channel of the residual stream, [D].
    """

    heads: NDArray[np.float64]
    neurons: NDArray[np.float64]
    channels: NDArray[np.float64]


class NormRatios(NamedTuple):
    """Root mean square over some channels divided by that over all, at the input of each norm, the mean over tokens.

    Attributes:
      layers: By the name of the norm, [L].
      final: Of the last norm.
    """

    layers: dict[str, NDArray[np.float64]]
    final: float


class _Inputs(NamedTuple):
    """What one layer reads and makes: inputs of its norms by name, head outputs and MLP activations."""

    norms: dict[str, Float[Array, "B T D"]]
    attended: Float[Array, "B T N H"]
    neurons: Float[Array, "B T F"]


def measure_influence(
    params: Params, config: ModelConfig, count: int, batches: Sequence[CalibrationRows]
) -> NDArray[np.float64]:
    """Influence of every `count` layers in a row by the first of them, [L - count + 1].

    Args:
      count: From 1 to the number of layers.
      batches: Rows of real text; at least one.
    """
    rows = [_influence_rows(params, config, count, jnp.asarray(tokens), jnp.asarray(real)) for tokens, real in batches]
    influence: NDArray[np.float64] = np.concatenate(rows, axis=-1).astype(np.float64).mean(-1)
    return influence


def measure_importance(params: Params, config: ModelConfig, batches: Sequence[CalibrationRows]) -> Importance:
    """Scores over all rows.

    Args:
      batches: Rows of real text; at least one.
    """
    rows = [_score_rows(params, config, jnp.asarray(tokens), jnp.asarray(real)) for tokens, real in batches]
    together = (
        np.concatenate([np.asarray(row[name], np.float64) for row in rows], axis=-2) for name in Importance._fields
    )
    return Importance(*(np.linalg.norm(values, axis=-2) for values in together))


def measure_norm_ratios(
    params: Params, config: ModelConfig, channels: NDArray[np.int64], batches: Sequence[CalibrationRows]
) -> NormRatios:
    """By how much each norm's divisor changes when only `channels` of the residual stream are left."""
    kept = np.zeros(config.hidden_size, np.float32)
    kept[channels] = 1.0
    parts = [_ratio_rows(params, config, jnp.asarray(kept), jnp.asarray(t), jnp.asarray(r)) for t, r in batches]
    layers, final = jax.tree.map(lambda *rows: np.concatenate(rows, axis=-1).astype(np.float64).mean(-1), *parts)
    return NormRatios(layers, float(final))


def _token_mean(values: Float[Array, "B T ..."], real: Bool[Array, "B T"]) -> Float[Array, "B ..."]:
    weights = (real / jnp.sum(real, axis=1, keepdims=True)).reshape(*real.shape, *([1] * (values.ndim - 2)))
    return jnp.sum(values * weights, axis=1)


def _walk(
    params: Params, config: ModelConfig, tokens: Int[Array, "B T"], real: Bool[Array, "B T"], read: Any
) -> tuple[Array, Any]:
    """Runs all layers; returns the stream after them, and `read(layer, x, x after it, _Inputs)` of each, stacked."""
    positions = token_positions(tokens, real)
    ropes = rope_tables(config, positions)

    def step(x: Array, scanned: Any) -> tuple[Array, Any]:
        layer, window, kind = scanned
        heads: list[Array] = []

        def attention(q: Array, k: Array, v: Array) -> tuple[Array, None]:
            k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)  # [B, K, T, H]
            visible = visible_keys(positions, positions, window)
            heads.append(
                attend(q, k, v, visible, scale=config.query_scale, cap=config.attn_logit_softcapping)
            )  # [B, T, N, H]
            return heads[-1], None

        after, _ = decoder_layer(config, layer, x, ropes[kind], attention)
        return after, read(layer, x, after, _inner(config, layer, x, heads[0]))

    x = embed(params["embed_tokens"], tokens, config.scale_embeddings)
    per_layer = np.array([layer_windows(config), layer_kinds(config)], np.int32)
    return jax.lax.scan(step, x, (params["layers"], *per_layer))


def _inner(config: ModelConfig, layer: Layer, x: Float[Array, "B T D"], attended: Float[Array, "B T N H"]) -> _Inputs:
    """The values inside `decoder_layer`; the compiler sees that they are computed already."""
    norm = partial(rms_norm, eps=config.rms_norm_eps, plus_one=config.norm_plus_one)
    norms = {"input_layernorm": x}
    branch = linear(attended.reshape(*x.shape[:2], -1), layer["o_proj"])
    before_mlp = "post_attention_layernorm"
    if config.use_post_norms:
        norms["post_attention_layernorm"] = branch
        branch, before_mlp = norm(branch, layer["post_attention_layernorm"]), "pre_feedforward_layernorm"
    norms[before_mlp] = x + branch
    read = norm(x + branch, layer[before_mlp])
    neurons = activate(linear(read, layer["gate_proj"]), config.hidden_activation) * linear(read, layer["up_proj"])
    if config.use_post_norms:
        norms["post_feedforward_layernorm"] = linear(neurons, layer["down_proj"])
    return _Inputs(norms, attended, neurons)


@partial(jax.jit, static_argnums=(1, 2))
def _influence_rows(
    params: Params, config: ModelConfig, count: int, tokens: Array, real: Array
) -> Float[Array, "blocks B"]:
    """Influence on each row, the mean over its tokens."""
    last, before = _walk(params, config, tokens, real, lambda layer, x, after, inner: x)
    streams = jnp.concatenate([before, last[None]])  # [L + 1, B, T, D]
    first, after = streams[: len(streams) - count], streams[count:]
    sizes = jnp.linalg.norm(first, axis=-1) * jnp.linalg.norm(after, axis=-1)
    cosines = jnp.sum(first * after, axis=-1) / jnp.maximum(sizes, 1e-30)  # [blocks, B, T]
    return jax.vmap(lambda cosine: _token_mean(1.0 - cosine, real))(cosines)


@partial(jax.jit, static_argnums=1)
def _score_rows(params: Params, config: ModelConfig, tokens: Array, real: Array) -> dict[str, Array]:
    """Means over the tokens of each row: heads [L, B, N], neurons [L, B, F], channels [B, D]."""
    norm = partial(rms_norm, eps=config.rms_norm_eps, plus_one=config.norm_plus_one)

    def read(layer: Layer, x: Array, after: Array, inner: _Inputs) -> dict[str, Array]:
        writers = layer["o_proj"].reshape(-1, config.num_attention_heads, config.head_dim)  # [D, N, H]
        gram = jnp.einsum("dnh,dng->nhg", writers, writers)
        squared = jnp.einsum("btnh,nhg,btng->btn", inner.attended, gram, inner.attended)
        columns = jnp.linalg.norm(layer["down_proj"], axis=0)  # [F]
        streams = [inner.norms["input_layernorm"], inner.norms[_before_mlp(config)]]
        gains = [layer["input_layernorm"], layer[_before_mlp(config)]]
        channels = sum(jnp.abs(norm(s, g)) for s, g in zip(streams, gains, strict=True))
        return {
            "heads": _token_mean(jnp.sqrt(jnp.maximum(squared, 0.0)), real),
            "neurons": _token_mean(jnp.abs(inner.neurons), real) * columns,
            "channels": _token_mean(jnp.asarray(channels), real),
        }

    last, scores = _walk(params, config, tokens, real, read)
    final = _token_mean(jnp.abs(norm(last, params["norm"])), real)
    return {**scores, "channels": scores["channels"].sum(0) + final}


@partial(jax.jit, static_argnums=1)
def _ratio_rows(
    params: Params, config: ModelConfig, kept: Float[Array, " D"], tokens: Array, real: Array
) -> tuple[dict[str, Array], Array]:
    """Ratio of each row, [L, B] by the name of the norm and [B] of the last one."""
    share, eps = jnp.mean(kept), config.rms_norm_eps

    def ratio(x: Array) -> Array:
        squares = jnp.square(x)
        # The pruned model's eps is that of `cut_channels`, eps / share.
        left = (jnp.mean(squares * kept, axis=-1) + eps) / share
        return _token_mean(jnp.sqrt(left / (jnp.mean(squares, axis=-1) + eps)), real)

    def read(layer: Layer, x: Array, after: Array, inner: _Inputs) -> dict[str, Array]:
        return {name: ratio(x) for name, x in inner.norms.items()}

    last, ratios = _walk(params, config, tokens, real, read)
    return ratios, ratio(last)


def _before_mlp(config: ModelConfig) -> str:
    return "pre_feedforward_layernorm" if config.use_post_norms else "post_attention_layernorm"
