"""The metadata that makes llama.cpp, and attar's runtime, run a GGUF file as the model its config describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attar.engine.config import LayerType, ModelConfig, alternate_layers
from attar.engine.gguf_file import GgufFile
from attar.engine.gguf_names import ARCHITECTURES
from attar.engine.gguf_reader import default_query_scalar
from attar.engine.tokenizer import gguf_tokenizer_metadata
from attar.export.errors import ExportError
from attar.quantize.policy import Scheme

# llama.cpp's llama_ftype, which names a file by the type of most of its tensors.
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "BF16": 32}
_QUANTIZATION_VERSION = 2

# Token type of an entry that no text produces, and the score that keeps it from being chosen.
_UNUSED_TOKEN, _UNUSED_SCORE = 5, -1000.0


def build_metadata(source: Path, file: GgufFile | None, config: ModelConfig, scheme: Scheme) -> dict[str, Any]:
    """All metadata of an exported file: general, architecture, tokenizer.

    Args:
      source: The checkpoint.
      file: The same, opened, where it is a GGUF: its name, licence and tokenizer are carried over as they are.

    Raises:
      ExportError: If GGUF cannot carry the model or its tokenizer.
      TokenizerError: If the source has no readable tokenizer.
    """
    check_representable(source, config)
    return {
        **_general(source, file, config, scheme),
        **architecture_metadata(config),
        **_tokenizer(source, file, config),
    }


def check_representable(source: Path, config: ModelConfig) -> None:
    """Refuses models that a reader of the file would compute differently.

    Raises:
      ExportError: Naming the field.
    """
    if config.model_type == "llama":
        return
    if config.rope_scaling is not None and config.rope_scaling.rope_type != "linear":
        raise ExportError(f"{source}: GGUF's Gemma scales RoPE linearly only, got {config.rope_scaling.rope_type}")
    if not config.tie_word_embeddings:
        raise ExportError(f"{source}: GGUF's Gemma ties head and token table, this model has a separate lm_head")
    caps = config.attn_logit_softcapping, config.final_logit_softcapping
    if config.model_type == "gemma2" and None in caps:
        raise ExportError(f"{source}: GGUF's gemma2 always caps its logits, this config has {caps}; set both caps")


def architecture_metadata(config: ModelConfig) -> dict[str, Any]:
    """The `<arch>.*` keys."""
    architecture = ARCHITECTURES[config.model_type]
    keys: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_theta,
        "rope.dimension_count": config.head_dim,
        **_rope_scaling(config),
        **_local_attention(config),
    }
    if config.attn_logit_softcapping is not None:
        keys["attn_logit_softcapping"] = config.attn_logit_softcapping
    if config.final_logit_softcapping is not None:
        keys["final_logit_softcapping"] = config.final_logit_softcapping
    return {f"{architecture}.{key}": value for key, value in keys.items()}


def query_fold(config: ModelConfig) -> float:
    """Factor on q that makes the scale a reader assumes equal to the model's; no key carries that scale.

    Scores are (q · k) / sqrt(scalar), so q is multiplied by sqrt(assumed / actual).
    """
    assumed = default_query_scalar(
        ARCHITECTURES[config.model_type],
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.head_dim,
    )
    return float((assumed / config.query_pre_attn_scalar) ** 0.5)


def window_period(layer_types: tuple[LayerType, ...]) -> int | None:
    """The period p such that exactly every p-th layer attends to all positions; None if the layers follow none."""
    count = len(layer_types)
    return next((p for p in range(1, count + 2) if alternate_layers(count, p) == layer_types), None)


def _rope_scaling(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None:
        return {}
    if scaling.rope_type == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    # Llama 3's factors are the tensor rope_freqs.weight; this length lets a reader recover the rule.
    return {
        "rope.scaling.type": "none",
        "rope.scaling.original_context_length": scaling.original_max_position_embeddings,
    }


def _local_attention(config: ModelConfig) -> dict[str, Any]:
    if config.sliding_window is None or config.model_type == "llama":
        return {}
    period = window_period(config.layer_types)
    flags = [kind == "sliding_attention" for kind in config.layer_types]
    return {
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": flags if period is None else period,
        "rope.freq_base_swa": config.rope_local_base_freq,
    }


def _general(source: Path, file: GgufFile | None, config: ModelConfig, scheme: Scheme) -> dict[str, Any]:
    inherited: dict[str, Any] = {}
    if file is not None:
        inherited = {key: value for key, value in file.metadata.items() if key.startswith("general.")}
        inherited.pop("general.alignment", None)
        inherited.pop("general.quantization_version", None)
    general = {
        "general.architecture": ARCHITECTURES[config.model_type],
        "general.type": "model",
        "general.name": source.resolve().stem,
        "general.size_label": _size_label(config.num_parameters),
        **inherited,
        "general.file_type": _FILE_TYPES[scheme.weights],
    }
    if scheme.weights.startswith("Q"):
        general["general.quantization_version"] = _QUANTIZATION_VERSION
    return general


def _size_label(num_parameters: int) -> str:
    """135M, 2.6B: the count as file names give it."""
    if num_parameters >= 10**9:
        return f"{num_parameters / 10**9:.1f}B"
    return f"{round(num_parameters / 10**6)}M" if num_parameters >= 10**6 else f"{round(num_parameters / 1000)}K"


def _tokenizer(source: Path, file: GgufFile | None, config: ModelConfig) -> dict[str, Any]:
    if file is not None:
        metadata = {k: v for k, v in file.metadata.items() if k.startswith("tokenizer.")}
    else:
        metadata = gguf_tokenizer_metadata(source)
    if "tokenizer.ggml.tokens" not in metadata:
        raise ExportError(f"{source}: has no vocabulary, a GGUF without one runs nowhere; add the tokenizer")
    _pad_vocabulary(source, metadata, config.vocab_size)
    return {**metadata, **_end_tokens(metadata, config)}


def _pad_vocabulary(source: Path, metadata: dict[str, Any], vocab_size: int) -> None:
    """Fills the vocabulary up to the embedding's rows, as readers demand that they are equally many."""
    tokens = list(metadata["tokenizer.ggml.tokens"])
    missing = vocab_size - len(tokens)
    if missing < 0:
        raise ExportError(
            f"{source}: the vocabulary must not exceed the embedding's {vocab_size} rows, got {len(tokens)}; "
            "the tokenizer belongs to another model"
        )
    if missing == 0:
        return
    metadata["tokenizer.ggml.tokens"] = tokens + [f"[PAD{len(tokens) + i}]" for i in range(missing)]
    for key, filler in (("token_type", _UNUSED_TOKEN), ("scores", _UNUSED_SCORE)):
        if f"tokenizer.ggml.{key}" in metadata:
            values = list(metadata[f"tokenizer.ggml.{key}"])
            metadata[f"tokenizer.ggml.{key}"] = values + [filler] * missing


def _end_tokens(metadata: dict[str, Any], config: ModelConfig) -> dict[str, int]:
    """Ids of `config.eos_token_ids` that the tokenizer's metadata does not name, in the places left for them."""
    places = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    named = {metadata.get(place) for place in places}
    unnamed = [token for token in config.eos_token_ids if token not in named]
    free = [place for place in places if metadata.get(place) is None]
    return dict(zip(free, unnamed, strict=False))
