"""Named model shapes: the published ones that attar must reproduce to the weight, and small ones for CPU and tests."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from attar.engine.config import LayerType, ModelConfig, alternate_layers


def _gemma2(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, head_dim: int) -> ModelConfig:
    """A Gemma 2 shape; queries are scaled by head_dim, the vocabulary has the 256,128 rows of the report."""
    return ModelConfig(
        model_type="gemma2",
        vocab_size=256128,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=8192,
        layer_types=alternate_layers(layers, 2),
        sliding_window=4096,
        rope_theta=10000.0,
        rope_local_base_freq=10000.0,
        query_pre_attn_scalar=float(head_dim),
        hidden_activation="gelu_pytorch_tanh",
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        use_qk_norm=False,
        use_post_norms=True,
        norm_plus_one=True,
        scale_embeddings=True,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        bos_token_id=2,
        eos_token_ids=(1, 107),
        pad_token_id=0,
    )


def _gemma3(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, head_dim: int) -> ModelConfig:
    """A Gemma 3 text shape: no caps, q/k norms, five sliding layers to a full one, two RoPE bases."""
    return _gemma2(hidden, intermediate, layers, heads, kv_heads, head_dim).replace(
        model_type="gemma3_text",
        vocab_size=262144,
        max_position_embeddings=32768,
        layer_types=alternate_layers(layers, 6),
        sliding_window=512,
        rope_theta=1000000.0,
        use_qk_norm=True,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        eos_token_ids=(1, 106),
    )


def _llama(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int) -> ModelConfig:
    """A SmolLM2 shape: Llama with a tied head; heads are hidden / heads wide."""
    full: LayerType = "full_attention"
    return ModelConfig(
        model_type="llama",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=8192,
        layer_types=(full,) * layers,
        rope_theta=100000.0,
        rope_local_base_freq=100000.0,
        query_pre_attn_scalar=float(hidden // heads),
        hidden_activation="silu",
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        use_qk_norm=False,
        use_post_norms=False,
        norm_plus_one=False,
        scale_embeddings=False,
        bos_token_id=1,
        eos_token_ids=(2,),
        pad_token_id=2,
    )


# Gemma 2: tables 1 and 2 of arXiv:2408.00118, whose feed-forward sizes count gate and up together. The 27B scales
# queries by hidden / heads = 144, not by head_dim.
_GEMMA2 = {
    "gemma2-2b": _gemma2(2304, 9216, 26, 8, 4, 256),
    "gemma2-9b": _gemma2(3584, 14336, 42, 16, 8, 256),
    "gemma2-27b": _gemma2(4608, 36864, 46, 32, 16, 128).replace(query_pre_attn_scalar=144.0),
}

# Gemini Nano's sizes (1.8B and 3.25B weights) are published, arXiv:2312.11805; its shapes are not. These are our own
# Gemma 2 shapes with those totals: 1.78B and 3.24B.
_NANO = {
    "nano-1": _gemma2(2048, 8192, 20, 8, 4, 256),
    "nano-2": _gemma2(2560, 9984, 28, 8, 4, 256),
}

_TINY = {
    "tiny-gemma2": _gemma2(64, 128, 4, 4, 2, 16).replace(
        vocab_size=512, sliding_window=8, max_position_embeddings=256, eos_token_ids=(1,)
    ),
    "tiny-gemma3": _gemma3(64, 128, 6, 4, 1, 16).replace(
        vocab_size=512, sliding_window=8, max_position_embeddings=256, eos_token_ids=(1,)
    ),
    "tiny-llama": _llama(64, 128, 4, 4, 2, 512).replace(max_position_embeddings=256),
}

PRESETS: Mapping[str, ModelConfig] = MappingProxyType(
    {
        **_GEMMA2,
        **_NANO,
        "gemma3-270m": _gemma3(640, 2048, 18, 4, 1, 256),
        "smollm2-135m": _llama(576, 1536, 30, 9, 3, 49152),
        "smollm2-60m": _llama(576, 1536, 9, 9, 3, 49152),
        **_TINY,
    }
)
