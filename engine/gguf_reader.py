"""Models inside GGUF files: the ModelConfig that the metadata describes, and the weights under Hugging Face names.

Where the metadata is silent, what llama.cpp assumes holds (`src/llama-model.cpp`, llama_model::load_hparams), so
that a file means the same here and there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from attar.engine._vocabulary import END_TOKENS
from attar.engine.config import ConfigError, LayerType, ModelConfig, RopeScaling, alternate_layers
from attar.engine.gguf_blocks import Floats
from attar.engine.gguf_file import GgufError, GgufFile, GgufTensor, read_gguf
from attar.engine.gguf_names import (
    MODEL_TYPES,
    ROPE_FREQS,
    gguf_names,
    hf_names,
    hf_shapes,
    is_norm,
    num_rope_heads,
    split_rope_rows,
)

__all__ = [
    "GgufError",
    "GgufFile",
    "GgufTensor",
    "check_tensors",
    "config_from_gguf",
    "default_query_scalar",
    "iter_tensors",
    "llama3_frequency_factors",
    "read_gguf",
    "tensors_from_gguf",
]

# Every _PERIOD-th layer attends to all positions, unless `attention.sliding_window_pattern` says otherwise.
_PERIOD = {"gemma2": 2, "gemma3": 6}

# The 27-billion models scale queries by hidden_size / heads; the metadata has no key that says so.
_WIDE_QUERY_LAYERS = {"gemma2": 46, "gemma3": 62}


def config_from_gguf(file: GgufFile) -> ModelConfig:
    """The model that a GGUF file describes.

    Raises:
      GgufError: If the architecture is unknown, a needed key is missing or of the wrong kind, or the file asks for
        something attar does not implement.
    """
    architecture = _Keys(file, "general").text("architecture")
    if architecture not in MODEL_TYPES:
        raise GgufError(
            f"{file.path}: architecture must be one of {', '.join(MODEL_TYPES)}, got {architecture!r}; "
            "attar does not run this family"
        )
    keys = _Keys(file, architecture)
    _refuse_unimplemented(keys)
    family = _llama_fields(keys) if architecture == "llama" else _gemma_fields(keys)
    try:
        return ModelConfig(model_type=MODEL_TYPES[architecture], **_common_fields(keys), **family)
    except ConfigError as error:
        raise GgufError(f"{file.path}: {error}; the metadata is inconsistent") from None


def tensors_from_gguf(file: GgufFile, config: ModelConfig | None = None) -> dict[str, Floats]:
    """All weights, dequantised to float32, as a Hugging Face checkpoint holds them.

    Returns:
      Hugging Face names to arrays [out, in]: Llama's q and k rows in half-split order, Gemma's norms as w (not
      1 + w), and no `lm_head.weight` where the head is tied.

    Raises:
      GgufError: If a tensor is missing, unexpected or of a shape that does not fit the metadata.
    """
    return dict(iter_tensors(file, config or config_from_gguf(file)))


def iter_tensors(file: GgufFile, config: ModelConfig) -> Iterator[tuple[str, Floats]]:
    """`tensors_from_gguf` one tensor at a time, in the order of the network."""
    check_tensors(file, config)
    for hf_name, gguf_name in gguf_names(config).items():
        weight = file.dequantize(gguf_name)
        heads = num_rope_heads(config, hf_name)
        if heads is not None:
            weight = split_rope_rows(weight, heads)
        if config.norm_plus_one and is_norm(hf_name):
            weight = weight - np.float32(1)
        yield hf_name, weight


def check_tensors(file: GgufFile, config: ModelConfig) -> None:
    """Compares names and shapes of the file's tensors with those of the config.

    Raises:
      GgufError: If a tensor is missing, unexpected or misshapen.
    """
    shapes = hf_shapes(config)
    known = hf_names(config)
    for gguf_name, hf_name in known.items():
        found = file.tensor(gguf_name).shape
        if found != shapes[hf_name]:
            raise GgufError(
                f"{file.path}: tensor {gguf_name!r} must be {list(shapes[hf_name])} by the metadata, "
                f"got {list(found)}, at byte {file.tensors[gguf_name].offset}; the file is inconsistent"
            )
    unknown = [name for name in file.tensors if name not in known and name != ROPE_FREQS]
    if unknown:
        raise GgufError(
            f"{file.path}: holds {len(unknown)} tensors that attar's {config.model_type} does not use "
            f"({', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}); attar does not run this variant"
        )


def default_query_scalar(architecture: str, num_layers: int, hidden_size: int, heads: int, head_dim: int) -> float:
    """The `query_pre_attn_scalar` that llama.cpp assumes of an architecture: the head size, with two exceptions."""
    if _WIDE_QUERY_LAYERS.get(architecture) == num_layers:
        return hidden_size / heads
    return float(head_dim)


def llama3_frequency_factors(scaling: RopeScaling, rope_theta: float, head_dim: int) -> Floats:
    """Divisors of the rotary frequencies under Llama 3 scaling, as `rope_freqs.weight` stores them.

    Returns:
      float32[head_dim / 2]: 1 for short wavelengths, `factor` for long ones, a blend between.

    References:
      transformers `modeling_rope_utils.py`, _compute_llama3_parameters.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    wavelengths = 2 * np.pi * rope_theta**exponents
    turns = scaling.original_max_position_embeddings / wavelengths
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - blend) / scaling.factor + blend)).astype(np.float32)


class _Keys:
    """Typed access to the metadata of one architecture; every failure names the file and the key."""

    def __init__(self, file: GgufFile, prefix: str) -> None:
        self.file = file
        self.prefix = prefix

    def get(self, key: str) -> Any:
        return self.file.metadata.get(f"{self.prefix}.{key}")

    def fail(self, key: str, rule: str) -> GgufError:
        return GgufError(f"{self.file.path}: {self.prefix}.{key} {rule}; the file does not describe a runnable model")

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            raise self.fail(key, f"must be a string, got {value!r}")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer; a per-layer array counts as one integer where all its elements are equal."""
        value = self.get(key)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.fail(key, f"must be one integer, got {'nothing' if value is None else repr(value)[:80]}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; float32 values come back as the shortest decimal that rounds to them (1e-06)."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not np.isfinite(value):
            raise self.fail(key, f"must be a finite number, got {'nothing' if value is None else repr(value)[:80]}")
        return float(str(np.float32(value)))

    def token(self, name: str) -> int | None:
        """A token id of `tokenizer.ggml`, checked against the vocabulary; None where the file names none."""
        value = self.file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        # Converters write 2^32 - 1 for "no such token".
        if value is None or value in (-1, 0xFFFFFFFF):
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < self.vocab_size():
            raise GgufError(
                f"{self.file.path}: tokenizer.ggml.{name}_token_id must be a token id below {self.vocab_size()}, "
                f"got {value!r}; the file is inconsistent"
            )
        return value

    def vocab_size(self) -> int:
        return self.file.tensor("token_embd.weight").shape[0]


def _refuse_unimplemented(keys: _Keys) -> None:
    if keys.integer("expert_count", 0):
        raise keys.fail("expert_count", "must be 0: attar does not implement mixtures of experts")
    head_dim = _head_dim(keys)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.integer(key, head_dim) != head_dim:
            raise keys.fail(key, f"must equal the head size {head_dim}, got {keys.integer(key)}")


def _common_fields(keys: _Keys) -> dict[str, Any]:
    heads = keys.integer("attention.head_count")
    return {
        "vocab_size": keys.vocab_size(),
        "hidden_size": keys.integer("embedding_length"),
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": _num_layers(keys),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": _head_dim(keys),
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in keys.file.tensors,
        "bos_token_id": keys.token("bos"),
        "eos_token_ids": _eos_token_ids(keys),
        "pad_token_id": keys.token("padding"),
    }


def _num_layers(keys: _Keys) -> int:
    """The layer count, bounded by the tensors in the file so that nothing is built for layers that are not there."""
    count = keys.integer("block_count")
    if not 1 <= count <= len(keys.file.tensors):
        raise keys.fail("block_count", f"must be from 1 to the number of tensors {len(keys.file.tensors)}, got {count}")
    return count


def _head_dim(keys: _Keys) -> int:
    heads = keys.integer("attention.head_count")
    if heads < 1:
        raise keys.fail("attention.head_count", f"must be at least 1, got {heads}")
    return keys.integer("attention.key_length", keys.integer("embedding_length") // heads)


def _eos_token_ids(keys: _Keys) -> tuple[int, ...]:
    """Every token that ends a generation: those the file names, and turn ends found in its vocabulary."""
    found = [keys.token(name) for name in ("eos", "eot", "eom")]
    tokens = keys.file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        if len(tokens) > keys.vocab_size():
            raise GgufError(
                f"{keys.file.path}: tokenizer.ggml.tokens has {len(tokens)} entries but the embedding only "
                f"{keys.vocab_size()} rows; the file is inconsistent"
            )
        found += [token_id for token_id, text in enumerate(tokens) if text in END_TOKENS]
    return tuple(dict.fromkeys(token_id for token_id in found if token_id is not None))


def _llama_fields(keys: _Keys) -> dict[str, Any]:
    window = keys.integer("attention.sliding_window", 0)
    if 0 < window < keys.integer("context_length"):
        raise keys.fail("attention.sliding_window", f"must be absent: attar's Llama has no local layers, got {window}")
    theta = keys.number("rope.freq_base", 10000.0)
    return {
        "layer_types": ("full_attention",) * _num_layers(keys),
        "rope_theta": theta,
        "rope_local_base_freq": theta,
        "rope_scaling": _llama_rope_scaling(keys, theta),
        "query_pre_attn_scalar": _query_scalar(keys),
        "hidden_activation": "silu",
        "use_qk_norm": False,
        "use_post_norms": False,
        "norm_plus_one": False,
        "scale_embeddings": False,
    }


def _gemma_fields(keys: _Keys) -> dict[str, Any]:
    gemma3 = keys.prefix == "gemma3"
    theta = keys.number("rope.freq_base", 10000.0)
    # Without a window Gemma 2 has 4096; Gemma 3 has no local layers.
    window = keys.integer("attention.sliding_window", 0 if gemma3 else 4096)
    # llama.cpp's defaults: Gemma 2 is always capped, Gemma 3's attention never.
    attention_cap = keys.number("attn_logit_softcapping", 0.0 if gemma3 else 50.0)
    if gemma3 and attention_cap:
        raise keys.fail("attn_logit_softcapping", f"must be absent: Gemma 3 does not cap scores, got {attention_cap}")
    return {
        "layer_types": _layer_types(keys) if window else ("full_attention",) * _num_layers(keys),
        "sliding_window": window or None,
        "rope_theta": theta,
        "rope_local_base_freq": keys.number("rope.freq_base_swa", 10000.0 if gemma3 else theta),
        "rope_scaling": _gemma_rope_scaling(keys),
        "query_pre_attn_scalar": _query_scalar(keys),
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": attention_cap or None,
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0 if gemma3 else 30.0) or None,
        "use_qk_norm": gemma3,
        "use_post_norms": True,
        "norm_plus_one": True,
        "scale_embeddings": True,
    }


def _query_scalar(keys: _Keys) -> float:
    scale = keys.number("attention.scale", 0.0)
    if scale > 0:
        return float(str(np.float32(scale**-2)))
    width, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    return default_query_scalar(keys.prefix, _num_layers(keys), width, heads, _head_dim(keys))


def _layer_types(keys: _Keys) -> tuple[LayerType, ...]:
    """Layer kinds from `attention.sliding_window_pattern`: a period, or one bool (is local) per layer."""
    layers = _num_layers(keys)
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray) and pattern.dtype == np.bool_ and len(pattern) == layers:
        return tuple("sliding_attention" if local else "full_attention" for local in pattern)
    period = keys.integer("attention.sliding_window_pattern", _PERIOD[keys.prefix])
    if period < 1:
        raise keys.fail("attention.sliding_window_pattern", f"must be a period of at least 1, got {period}")
    return alternate_layers(layers, period)


def _linear_rope_scaling(keys: _Keys) -> RopeScaling | None:
    # A factor without a type means linear (older converters); a stated "none" switches it off.
    kind = keys.get("rope.scaling.type") or "linear"
    if kind == "none":
        return None
    if kind != "linear":
        raise keys.fail("rope.scaling.type", f"must be 'none' or 'linear', got {kind!r}")
    factor = keys.number("rope.scaling.factor", 1.0)
    if factor < 0:
        raise keys.fail("rope.scaling.factor", f"must be positive, or 0 for no scaling, got {factor}")
    return None if factor in (0.0, 1.0) else RopeScaling("linear", factor)


def _gemma_rope_scaling(keys: _Keys) -> RopeScaling | None:
    scaling = _linear_rope_scaling(keys)
    if scaling is not None and keys.prefix == "gemma2":
        # llama.cpp would scale Gemma 2's local layers too, ModelConfig's scaling is for full layers only.
        raise keys.fail("rope.scaling.type", "must be 'none' for Gemma 2")
    return scaling


def _llama_rope_scaling(keys: _Keys, theta: float) -> RopeScaling | None:
    """Linear scaling from the metadata, or Llama 3's, recognised from the factors in `rope_freqs.weight`."""
    linear = _linear_rope_scaling(keys)
    if ROPE_FREQS not in keys.file.tensors:
        return linear
    head_dim = _head_dim(keys)
    factors = keys.file.dequantize(ROPE_FREQS).reshape(-1)
    if linear is not None or factors.shape != (head_dim // 2,) or not np.isfinite(factors).all():
        raise keys.fail("rope.scaling", f"must not combine with {ROPE_FREQS}, which must hold {head_dim // 2} numbers")
    if (factors == 1).all():
        return None
    original = keys.integer("rope.scaling.original_context_length", 8192)
    scaling = RopeScaling("llama3", float(factors.max()), 1.0, 4.0, original)
    if not np.allclose(factors, llama3_frequency_factors(scaling, theta, head_dim), rtol=1e-4):
        raise keys.fail("rope.scaling", f"must be Llama 3's: the factors in {ROPE_FREQS} follow another rule")
    return scaling
