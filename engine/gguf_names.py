"""Hugging Face and GGUF names of the same tensors, and the changes of layout between them.

The only table of its kind: the reader and the writer both use it. GGUF differs from Hugging Face in two ways
beyond names. Llama's q and k rows are stored for interleaved RoPE (pairs 2j, 2j + 1) where Hugging Face pairs
j, j + head_dim / 2; Gemma's are not. Gemma's norm weights are stored as 1 + w.
Source: llama.cpp `convert_hf_to_gguf.py` (LlamaModel.permute, Gemma2Model, Gemma3Model) and `gguf-py` tensor_mapping.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from attar.engine.config import ModelConfig, ModelType

ARCHITECTURES: dict[ModelType, str] = {"llama": "llama", "gemma2": "gemma2", "gemma3_text": "gemma3"}
MODEL_TYPES: dict[str, ModelType] = {name: model_type for model_type, name in ARCHITECTURES.items()}

# Llama 3's frequency factors, made from the config's rope_scaling; no Hugging Face tensor corresponds.
ROPE_FREQS = "rope_freqs.weight"

_GLOBAL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_PRE_NORM_ONLY = {"post_attention_layernorm": "ffn_norm"}
_POST_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}

T = TypeVar("T", bound=np.generic)


def gguf_names(config: ModelConfig) -> dict[str, str]:
    """Every tensor of a model: Hugging Face name to GGUF name, in the order of the network."""
    layer = {**_LAYER, **(_POST_NORMS if config.use_post_norms else _PRE_NORM_ONLY)}
    if config.use_qk_norm:
        layer |= _QK_NORMS
    names = dict(_GLOBAL)
    if config.tie_word_embeddings:
        del names["lm_head.weight"]
    for index in range(config.num_hidden_layers):
        for hf, gguf in layer.items():
            names[f"model.layers.{index}.{hf}.weight"] = f"blk.{index}.{gguf}.weight"
    return names


def hf_names(config: ModelConfig) -> dict[str, str]:
    """Every tensor of a model: GGUF name to Hugging Face name."""
    return {gguf: hf for hf, gguf in gguf_names(config).items()}


def hf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model: Hugging Face name to shape, weights [out, in]."""
    return {name: _shape(config, name) for name in gguf_names(config)}


def is_norm(name: str) -> bool:
    """Whether a tensor, named in either way, is the weight of an RMSNorm."""
    return name.removesuffix(".weight").endswith("norm")


def num_rope_heads(config: ModelConfig, hf_name: str) -> int | None:
    """Heads of a tensor whose rows GGUF stores for interleaved RoPE; None for every other tensor."""
    if config.model_type != "llama":
        return None
    if hf_name.endswith("self_attn.q_proj.weight"):
        return config.num_attention_heads
    return config.num_key_value_heads if hf_name.endswith("self_attn.k_proj.weight") else None


def interleave_rope_rows(rows: npt.NDArray[T], num_heads: int) -> npt.NDArray[T]:
    """Half-split to interleaved rows: row j + half * i of a head becomes row 2j + i. Any row content, [N * H, ...]."""
    half = len(rows) // num_heads // 2
    return rows.reshape(num_heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def split_rope_rows(rows: npt.NDArray[T], num_heads: int) -> npt.NDArray[T]:
    """Interleaved to half-split rows, the inverse of `interleave_rope_rows`."""
    half = len(rows) // num_heads // 2
    return rows.reshape(num_heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _shape(config: ModelConfig, name: str) -> tuple[int, ...]:
    width, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    shapes: dict[str, Any] = {
        "embed_tokens": (config.vocab_size, width),
        "lm_head": (config.vocab_size, width),
        "q_proj": (queries, width),
        "k_proj": (keys, width),
        "v_proj": (keys, width),
        "o_proj": (width, queries),
        "gate_proj": (inner, width),
        "up_proj": (inner, width),
        "down_proj": (width, inner),
        "q_norm": (config.head_dim,),
        "k_norm": (config.head_dim,),
    }
    shape: tuple[int, ...] = shapes.get(name.split(".")[-2], (width,))
    return shape
