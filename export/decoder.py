"""The decoder, written once against an Emitter; ONNX and TFLite are two emitters.

An emitter turns each call into nodes of its own graph and hands back a handle of its own type. Weights are named
by their Hugging Face names, so that an emitter decides their precision and storage alone. What differs between
families is read from ModelConfig here and nowhere else in `export`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from attar.engine.config import Activation, ModelConfig
from attar.engine.rope import inverse_frequencies

V = TypeVar("V")


@dataclass(frozen=True)
class AttentionSpec:
    """Everything an emitter must know to attend with one layer's cache.

    Attributes:
      layer: Index of the layer, which names its cache inputs and outputs.
      scale: Factor on q before the dot product.
      window: Keys that a query sees, itself included; None sees all.
      soft_cap: Scores become cap * tanh(score / cap) before masking; None leaves them.
      rope_frequencies: Radians per position of each pair (j, j + head_dim / 2), float32 [head_dim / 2].
    """

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None
    soft_cap: float | None
    rope_frequencies: NDArray[np.float32]


class Emitter(Protocol[V]):
    """Builds a graph over token ids [B, T] with one KV cache per layer."""

    def embedding(self, weight: str) -> V:
        """Rows of the table for the graph's token input: [B, T, D]."""
        ...

    def scale(self, x: V, factor: float) -> V: ...
    def add(self, x: V, y: V) -> V: ...

    def linear(self, x: V, weight: str) -> V:
        """x [B, T, in] times the transpose of weight [out, in]: [B, T, out]."""
        ...

    def rms_norm(self, x: V, weight: str, eps: float, plus_one: bool) -> V:
        """x / sqrt(mean(x^2) + eps) over the last axis, times weight (or 1 + weight)."""
        ...

    def head_norm(self, x: V, weight: str, num_heads: int, eps: float, plus_one: bool) -> V:
        """rms_norm over each head's slice of x [B, T, num_heads * head_dim]; weight is [head_dim]."""
        ...

    def attention(self, q: V, k: V, v: V, spec: AttentionSpec) -> V:
        """Rotates q and k, appends k and v to the layer's cache, attends causally.

        q is [B, T, N * H], k and v are [B, T, K * H], unrotated; the result is [B, T, N * H].
        """
        ...

    def gated(self, gate: V, up: V, activation: Activation) -> V:
        """activation(gate) * up."""
        ...

    def soft_cap(self, x: V, cap: float) -> V:
        """cap * tanh(x / cap)."""
        ...


def emit_hidden(config: ModelConfig, emitter: Emitter[V]) -> V:
    """Emits the network up to the final norm: hidden states [B, T, D]."""
    x = emitter.embedding("model.embed_tokens.weight")
    if config.scale_embeddings:
        x = emitter.scale(x, config.hidden_size**0.5)
    for layer in range(config.num_hidden_layers):
        x = _emit_attention_block(config, emitter, x, layer)
        x = _emit_mlp_block(config, emitter, x, layer)
    return emitter.rms_norm(x, "model.norm.weight", config.rms_norm_eps, config.norm_plus_one)


def emit_logits(config: ModelConfig, emitter: Emitter[V], hidden: V) -> V:
    """Emits the head on hidden states [B, T, D]: logits [B, T, vocabulary]."""
    tied = config.tie_word_embeddings
    logits = emitter.linear(hidden, "model.embed_tokens.weight" if tied else "lm_head.weight")
    if config.final_logit_softcapping is not None:
        logits = emitter.soft_cap(logits, config.final_logit_softcapping)
    return logits


def attention_spec(config: ModelConfig, layer: int) -> AttentionSpec:
    """The attention of one layer, resolved from the config."""
    kind = config.layer_types[layer]
    local = kind == "sliding_attention"
    return AttentionSpec(
        layer=layer,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        scale=config.query_scale,
        window=config.sliding_window if local else None,
        soft_cap=config.attn_logit_softcapping,
        rope_frequencies=inverse_frequencies(config, kind),
    )


def _emit_attention_block(config: ModelConfig, emitter: Emitter[V], x: V, layer: int) -> V:
    prefix = f"model.layers.{layer}"
    eps, plus_one = config.rms_norm_eps, config.norm_plus_one
    h = emitter.rms_norm(x, f"{prefix}.input_layernorm.weight", eps, plus_one)
    q = emitter.linear(h, f"{prefix}.self_attn.q_proj.weight")
    k = emitter.linear(h, f"{prefix}.self_attn.k_proj.weight")
    v = emitter.linear(h, f"{prefix}.self_attn.v_proj.weight")
    if config.use_qk_norm:
        q = emitter.head_norm(q, f"{prefix}.self_attn.q_norm.weight", config.num_attention_heads, eps, plus_one)
        k = emitter.head_norm(k, f"{prefix}.self_attn.k_norm.weight", config.num_key_value_heads, eps, plus_one)
    attended = emitter.attention(q, k, v, attention_spec(config, layer))
    branch = emitter.linear(attended, f"{prefix}.self_attn.o_proj.weight")
    if config.use_post_norms:
        branch = emitter.rms_norm(branch, f"{prefix}.post_attention_layernorm.weight", eps, plus_one)
    return emitter.add(x, branch)


def _emit_mlp_block(config: ModelConfig, emitter: Emitter[V], x: V, layer: int) -> V:
    prefix = f"model.layers.{layer}"
    eps, plus_one = config.rms_norm_eps, config.norm_plus_one
    # Llama names the norm before the MLP "post_attention"; with post-norms that name is the branch norm's.
    pre_norm = "pre_feedforward_layernorm" if config.use_post_norms else "post_attention_layernorm"
    h = emitter.rms_norm(x, f"{prefix}.{pre_norm}.weight", eps, plus_one)
    gate = emitter.linear(h, f"{prefix}.mlp.gate_proj.weight")
    up = emitter.linear(h, f"{prefix}.mlp.up_proj.weight")
    branch = emitter.linear(emitter.gated(gate, up, config.hidden_activation), f"{prefix}.mlp.down_proj.weight")
    if config.use_post_norms:
        branch = emitter.rms_norm(branch, f"{prefix}.post_feedforward_layernorm.weight", eps, plus_one)
    return emitter.add(x, branch)
