"""The decoder against a second one, written plainly in numpy float64: a loop per layer, token and head, no batching."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from attar.engine.checkpoint import tensors_from_params
from attar.engine.config import ModelConfig
from attar.engine.presets import PRESETS
from attar.engine.transformer import forward, init_params

Vector = NDArray[np.float64]


def norm(config: ModelConfig, x: Vector, weight: Vector) -> Vector:
    gain = 1 + weight if config.norm_plus_one else weight
    return x / math.sqrt(float(np.mean(x * x)) + config.rms_norm_eps) * gain


def rotate(config: ModelConfig, x: Vector, position: int, local: bool) -> Vector:
    half = len(x) // 2
    theta = config.rope_local_base_freq if local else config.rope_theta
    out = np.empty_like(x)
    for j in range(half):
        frequency = theta ** (-2 * j / len(x))
        if config.rope_scaling is not None and not local:
            frequency /= config.rope_scaling.factor  # the configs below scale linearly
        cos, sin = math.cos(position * frequency), math.sin(position * frequency)
        out[j] = x[j] * cos - x[j + half] * sin
        out[j + half] = x[j + half] * cos + x[j] * sin
    return out


def cap(x: float, limit: float | None) -> float:
    return x if limit is None else limit * math.tanh(x / limit)


def activation(config: ModelConfig, x: float) -> float:
    if config.hidden_activation == "silu":
        return x / (1 + math.exp(-x))
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def plain_logits(config: ModelConfig, weights: dict[str, Vector], tokens: list[int]) -> NDArray[np.float64]:
    xs = [weights["model.embed_tokens.weight"][t] for t in tokens]
    if config.scale_embeddings:
        xs = [x * math.sqrt(config.hidden_size) for x in xs]
    for i, kind in enumerate(config.layer_types):
        w = {name.split(".")[-2]: value for name, value in weights.items() if f"layers.{i}." in name}
        xs = plain_layer(config, w, xs, local=kind == "sliding_attention")
    xs = [norm(config, x, weights["model.norm.weight"]) for x in xs]
    head = weights["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
    return np.array([[cap(y, config.final_logit_softcapping) for y in head @ x] for x in xs])


def plain_layer(config: ModelConfig, w: dict[str, Vector], xs: list[Vector], local: bool) -> list[Vector]:
    H, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    normed = [norm(config, x, w["input_layernorm"]) for x in xs]

    def heads(name: str, norm_name: str | None) -> list[list[Vector]]:
        """[token][head]: projected, normed and rotated."""
        rows = [(w[name] @ x).reshape(-1, H) for x in normed]
        if norm_name is None:
            return [list(row) for row in rows]
        if config.use_qk_norm:
            rows = [np.array([norm(config, head, w[norm_name]) for head in row]) for row in rows]
        return [[rotate(config, head, t, local) for head in row] for t, row in enumerate(rows)]

    q, k, v = heads("q_proj", "q_norm"), heads("k_proj", "k_norm"), heads("v_proj", None)
    out = []
    for t, x in enumerate(xs):
        first = max(0, t - (config.sliding_window or 0) + 1) if local else 0
        attended = []
        for n in range(config.num_attention_heads):
            scale = 1 / math.sqrt(config.query_pre_attn_scalar)
            raw = [
                cap(float(q[t][n] @ k[s][n // group]) * scale, config.attn_logit_softcapping)
                for s in range(first, t + 1)
            ]
            e = [math.exp(r - max(raw)) for r in raw]
            attended.append(sum(p / sum(e) * v[first + j][n // group] for j, p in enumerate(e)))
        branch = w["o_proj"] @ np.concatenate(attended)
        if config.use_post_norms:
            branch = norm(config, branch, w["post_attention_layernorm"])
        x = x + branch
        before = "pre_feedforward_layernorm" if config.use_post_norms else "post_attention_layernorm"
        h = norm(config, x, w[before])
        gate = np.array([activation(config, y) for y in w["gate_proj"] @ h])
        branch = w["down_proj"] @ (gate * (w["up_proj"] @ h))
        if config.use_post_norms:
            branch = norm(config, branch, w["post_feedforward_layernorm"])
        out.append(x + branch)
    return out


@pytest.mark.parametrize("name", ["tiny-gemma2", "tiny-gemma3", "tiny-llama"])
def test_forward_equals_plain_float64(name: str) -> None:
    small: dict[str, Any] = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48}
    config = PRESETS[name].replace(**small, query_pre_attn_scalar=20.0)
    if name == "tiny-gemma2":  # caps that bite
        config = config.replace(attn_logit_softcapping=2.0, final_logit_softcapping=1.5)
    else:
        config = config.replace(tie_word_embeddings=False)
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    spread = lambda leaf: leaf + 0.2 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)  # noqa: E731
    params = jax.tree.map(spread, params)
    tokens = [int(t) for t in np.random.default_rng(1).integers(0, 40, 25)]  # three windows of 8
    weights = {key: value.astype(np.float64) for key, value in tensors_from_params(config, params).items()}
    expected = plain_logits(config, weights, tokens)
    ours = jax.jit(forward, static_argnums=1)(params, config, jnp.asarray([tokens], jnp.int32))[0]
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
