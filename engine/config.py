"""ModelConfig: one frozen description of every decoder that attar trains, exports and runs.

Field names are Hugging Face's. Families differ only in values: what a Gemma does and a Llama does not is a
field here (post-norms, q/k norms, soft caps, window), never a branch on the family's name in the forward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

ModelType = Literal["llama", "gemma2", "gemma3_text"]
LayerType = Literal["full_attention", "sliding_attention"]
Activation = Literal["silu", "gelu_pytorch_tanh"]


class ConfigError(ValueError):
    """A model description that attar cannot run as its author meant it."""


@dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of rotary embeddings on full-attention layers (Llama and Gemma 3).

    `linear` divides every frequency by `factor` (Gemma 3, 4B and up). `llama3` divides long wavelengths by
    `factor`, keeps short ones, and blends between (Llama 3.1; transformers `_compute_llama3_parameters`).
    """

    rope_type: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and constants of a decoder-only transformer. All lengths are in tokens.

    Attributes:
      layer_types: Attention kind of each layer, `num_hidden_layers` long.
      sliding_window: Keys that a sliding layer's query sees, itself included; None without sliding layers.
      rope_theta: RoPE base of full-attention layers.
      rope_local_base_freq: RoPE base of sliding layers (equal to `rope_theta` except in Gemma 3).
      query_pre_attn_scalar: Queries are multiplied by this to the power -1/2.
      use_qk_norm: RMSNorm over head_dim on q and k before RoPE (Gemma 3).
      use_post_norms: RMSNorm on each branch output before the residual add (Gemma 2 and 3).
      norm_plus_one: RMSNorm multiplies by 1 + weight (Gemma) instead of by weight (Llama).
      scale_embeddings: Token embeddings are multiplied by sqrt(hidden_size), cast to the activation dtype first.
      eos_token_ids: Every id that ends a generation.
    """

    model_type: ModelType
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    layer_types: tuple[LayerType, ...]
    rope_theta: float
    rope_local_base_freq: float
    query_pre_attn_scalar: float
    hidden_activation: Activation
    rms_norm_eps: float
    tie_word_embeddings: bool
    use_qk_norm: bool
    use_post_norms: bool
    norm_plus_one: bool
    scale_embeddings: bool
    sliding_window: int | None = None
    rope_scaling: RopeScaling | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                "num_key_value_heads must divide num_attention_heads, "
                f"got {self.num_key_value_heads} and {self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even (RoPE rotates pairs), got {self.head_dim}")
        if len(self.layer_types) != self.num_hidden_layers:
            raise ConfigError(
                "layer_types must name num_hidden_layers layers, "
                f"got {len(self.layer_types)} and {self.num_hidden_layers}"
            )
        if "sliding_attention" in self.layer_types and (self.sliding_window or 0) < 1:
            raise ConfigError(f"sliding layers need a sliding_window of at least 1, got {self.sliding_window}")

    @property
    def num_query_groups(self) -> int:
        """Query heads that share one KV head (G = N / K)."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def query_scale(self) -> float:
        """Factor on q before the dot product with k."""
        return float(self.query_pre_attn_scalar**-0.5)

    @property
    def embedding_parameters(self) -> int:
        """Number of weights in the token table (and in the head, where it is not tied)."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def non_embedding_parameters(self) -> int:
        """Number of weights outside the token table and head."""
        heads, kv_heads, width = self.num_attention_heads, self.num_key_value_heads, self.hidden_size
        attention = width * self.head_dim * 2 * (heads + kv_heads)
        mlp = 3 * width * self.intermediate_size
        norms = width * (4 if self.use_post_norms else 2) + (2 * self.head_dim if self.use_qk_norm else 0)
        return self.num_hidden_layers * (attention + mlp + norms) + width

    @property
    def num_parameters(self) -> int:
        """Number of all weights, the shared token table counted once."""
        return self.embedding_parameters + self.non_embedding_parameters

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Reads the content of a Hugging Face `config.json`.

        Raises:
          ConfigError: If the architecture is unknown, a needed key is missing, or a key that changes the
            mathematics holds a value attar does not implement.
        """
        model_type = raw.get("model_type")
        if model_type not in _FROM_HF:
            raise ConfigError(f"model_type must be one of {sorted(_FROM_HF)}, got {model_type!r}")
        _reject_unknown(raw)
        try:
            return cls(**_common_fields(raw), **_FROM_HF[model_type](raw))
        except ConfigError:
            raise
        except KeyError as error:
            raise ConfigError(f"config lacks the key {error.args[0]!r}") from None
        except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise ConfigError(f"config holds a value of the wrong type: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """The content of a `config.json` that transformers opens as the same model."""
        raw = dict(_ARCHITECTURES[self.model_type])
        raw.update({name: getattr(self, name) for name in _SAME_NAME})
        raw["bos_token_id"], raw["pad_token_id"] = self.bos_token_id, self.pad_token_id
        eos = list(self.eos_token_ids)
        raw["eos_token_id"] = eos[0] if len(eos) == 1 else (eos or None)
        raw["attention_bias"] = False
        if self.model_type == "llama":
            raw["hidden_act"] = self.hidden_activation
            raw["mlp_bias"] = False
        else:
            raw["hidden_activation"] = self.hidden_activation
            # transformers types this field as an integer and refuses 256.0.
            scalar = self.query_pre_attn_scalar
            raw["query_pre_attn_scalar"] = int(scalar) if scalar.is_integer() else scalar
            raw["sliding_window"] = self.sliding_window
            raw["layer_types"] = list(self.layer_types)
            raw["attn_logit_softcapping"] = self.attn_logit_softcapping
            raw["final_logit_softcapping"] = self.final_logit_softcapping
        if self.model_type == "gemma3_text":
            raw["rope_local_base_freq"] = self.rope_local_base_freq
        if self.rope_scaling is not None:
            raw["rope_scaling"] = _rope_scaling_to_hf(self.rope_scaling)
        return raw


_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)

_SAME_NAME = (*_POSITIVE, "rope_theta", "rms_norm_eps", "tie_word_embeddings")

_ARCHITECTURES: dict[ModelType, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "gemma2": {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"},
    "gemma3_text": {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"},
}

# Keys that attar reads, and keys that say nothing about the mathematics of inference. Anything else is refused.
_READ_KEYS = frozenset(
    {
        *_SAME_NAME,
        "model_type",
        "hidden_act",
        "hidden_activation",
        "query_pre_attn_scalar",
        "sliding_window",
        "sliding_window_pattern",
        "_sliding_window_pattern",
        "layer_types",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "rope_local_base_freq",
        "rope_scaling",
        "rope_parameters",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "attention_bias",
        "mlp_bias",
        "use_bidirectional_attention",
    }
)
_HARMLESS_KEYS = frozenset(
    {
        "architectures",
        "attention_dropout",
        "cache_implementation",
        "dtype",
        "initializer_range",
        "is_llama_config",
        "pretraining_tp",
        "rope_interleaved",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "use_cache",
        "_name_or_path",
    }
)


def _reject_unknown(raw: Mapping[str, Any]) -> None:
    unknown = sorted(set(raw) - _READ_KEYS - _HARMLESS_KEYS)
    if unknown:
        raise ConfigError(f"config has keys that attar does not know and so cannot honour: {', '.join(unknown)}")
    for key in ("attention_bias", "mlp_bias", "rope_interleaved", "use_bidirectional_attention"):
        if raw.get(key):
            raise ConfigError(f"{key} must be false: attar does not implement it, got {raw[key]!r}")


def _common_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    eos = raw.get("eos_token_id")
    heads = raw["num_attention_heads"]
    return {
        "model_type": raw["model_type"],
        "vocab_size": raw["vocab_size"],
        "hidden_size": raw["hidden_size"],
        "intermediate_size": raw["intermediate_size"],
        "num_hidden_layers": raw["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": raw.get("num_key_value_heads") or heads,
        "head_dim": raw.get("head_dim") or raw["hidden_size"] // heads,
        "max_position_embeddings": raw["max_position_embeddings"],
        "rms_norm_eps": float(raw.get("rms_norm_eps", 1e-6)),
        "bos_token_id": raw.get("bos_token_id"),
        "eos_token_ids": () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos),
        "pad_token_id": raw.get("pad_token_id"),
    }


def _rope_of(raw: Mapping[str, Any], layer_type: str) -> Mapping[str, Any]:
    """RoPE description of one layer kind, from transformers 5 `rope_parameters` or the older flat keys."""
    nested = raw.get("rope_parameters")
    if nested is None:
        flat = {"rope_theta": raw["rope_theta"]} if "rope_theta" in raw else {}
        return {**flat, **(raw.get("rope_scaling") or {})}
    chosen: Mapping[str, Any] = nested.get(layer_type, nested)
    return chosen


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", float(rope["factor"]))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope["original_max_position_embeddings"]),
        )
    raise ConfigError(f"rope_type must be 'default', 'linear' or 'llama3', got {kind!r}")


def _rope_scaling_to_hf(scaling: RopeScaling) -> dict[str, Any]:
    if scaling.rope_type == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return dataclasses.asdict(scaling)


def _activation(raw: Mapping[str, Any], default: str) -> Activation:
    name = raw.get("hidden_activation") or raw.get("hidden_act") or default
    if name == "silu" or name == "gelu_pytorch_tanh":
        return "silu" if name == "silu" else "gelu_pytorch_tanh"
    raise ConfigError(f"hidden_activation must be 'silu' or 'gelu_pytorch_tanh', got {name!r}")


def _layer_types(raw: Mapping[str, Any], period: int) -> tuple[LayerType, ...]:
    """Named layer kinds, or every `period`-th layer full and the others sliding (Gemma's order)."""
    named = raw.get("layer_types")
    if named is None:
        return alternate_layers(raw["num_hidden_layers"], period)
    wrong = sorted({str(kind) for kind in named} - {"full_attention", "sliding_attention"})
    if wrong:
        raise ConfigError(f"layer_types must be 'full_attention' or 'sliding_attention', got {', '.join(wrong)}")
    return tuple(named)


def alternate_layers(num_layers: int, period: int) -> tuple[LayerType, ...]:
    """Sliding layers with every `period`-th one full: period 2 is Gemma 2, period 6 is Gemma 3."""
    return tuple("full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(num_layers))


def _llama_from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    rope = _rope_of(raw, "full_attention")
    head_dim = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    return {
        "layer_types": ("full_attention",) * raw["num_hidden_layers"],
        "rope_theta": float(rope.get("rope_theta", 10000.0)),
        "rope_local_base_freq": float(rope.get("rope_theta", 10000.0)),
        "rope_scaling": _rope_scaling(rope),
        "query_pre_attn_scalar": float(head_dim),
        "hidden_activation": _activation(raw, "silu"),
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", False)),
        "use_qk_norm": False,
        "use_post_norms": False,
        "norm_plus_one": False,
        "scale_embeddings": False,
    }


def _gemma_from_hf(raw: Mapping[str, Any], period: int) -> dict[str, Any]:
    """Fields that Gemma 2 and 3 read alike."""
    return {
        "layer_types": _layer_types(raw, period),
        "sliding_window": raw.get("sliding_window", 4096),
        "query_pre_attn_scalar": float(raw.get("query_pre_attn_scalar", 256)),
        "hidden_activation": _activation(raw, "gelu_pytorch_tanh"),
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", True)),
        "use_post_norms": True,
        "norm_plus_one": True,
        "scale_embeddings": True,
    }


def _gemma2_from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    rope = _rope_of(raw, "full_attention")
    if _rope_scaling(rope) is not None:
        raise ConfigError(f"rope_type must be 'default' in a Gemma 2, got {rope.get('rope_type', rope.get('type'))!r}")
    theta = float(rope.get("rope_theta", 10000.0))
    return {
        **_gemma_from_hf(raw, period=2),
        "rope_theta": theta,
        "rope_local_base_freq": theta,
        "attn_logit_softcapping": raw.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": raw.get("final_logit_softcapping", 30.0),
        "use_qk_norm": False,
    }


def _gemma3_from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    full, local = _rope_of(raw, "full_attention"), _rope_of(raw, "sliding_attention")
    if raw.get("rope_parameters") is None:
        local = {"rope_theta": raw.get("rope_local_base_freq", 10000.0)}
    if raw.get("attn_logit_softcapping") is not None:
        # transformers carries the key and ignores it, so nobody knows what such a model was trained with.
        raise ConfigError(f"attn_logit_softcapping must be null in a Gemma 3, got {raw['attn_logit_softcapping']}")
    if _rope_scaling(local) is not None:
        raise ConfigError("rope_type of sliding layers must be 'default': attar scales full-attention layers only")
    return {
        **_gemma_from_hf(raw, raw.get("sliding_window_pattern") or raw.get("_sliding_window_pattern") or 6),
        "rope_theta": float(full.get("rope_theta", 1000000.0)),
        "rope_local_base_freq": float(local.get("rope_theta", 10000.0)),
        "rope_scaling": _rope_scaling(full),
        "final_logit_softcapping": raw.get("final_logit_softcapping"),
        "use_qk_norm": True,
    }


_FROM_HF = {"llama": _llama_from_hf, "gemma2": _gemma2_from_hf, "gemma3_text": _gemma3_from_hf}
