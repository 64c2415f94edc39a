"""ModelConfig and weights out of GGUF files: what each key means, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attar.engine.config import ModelConfig, RopeScaling, alternate_layers
from attar.engine.gguf_file import GgufError, GgufFile, read_gguf
from attar.engine.gguf_names import ROPE_FREQS, gguf_names, hf_shapes, interleave_rope_rows
from attar.engine.gguf_reader import (
    config_from_gguf,
    default_query_scalar,
    llama3_frequency_factors,
    tensors_from_gguf,
)
from attar.engine.presets import PRESETS
from attar.export.gguf_format import TensorEntry, write_gguf

COMMON = {
    "context_length": 256,
    "embedding_length": 64,
    "feed_forward_length": 128,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
LLAMA = {**COMMON, "block_count": 4}
GEMMA2 = {**COMMON, "block_count": 4, "attention.key_length": 16, "attention.value_length": 16}
GEMMA3 = {**GEMMA2, "block_count": 6, "attention.head_count_kv": 1, "attention.sliding_window": 8}
TOKENS = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": 3}


def write_model(
    path: Path,
    architecture: str,
    keys: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    other: Mapping[str, Any] | None = None,
) -> GgufFile:
    metadata = {"general.architecture": architecture, **{f"{architecture}.{k}": v for k, v in keys.items()}}
    metadata |= TOKENS if other is None else other
    entries = [TensorEntry(name, tensor.shape, "F32") for name, tensor in tensors.items()]
    write_gguf(path, metadata, entries, ((n, t.reshape(-1).view(np.uint8)) for n, t in tensors.items()))
    return read_gguf(path)


def tensors_of(config: ModelConfig) -> dict[str, np.ndarray]:
    """Random tensors under their GGUF names."""
    rng = np.random.default_rng(0)
    shapes = hf_shapes(config)
    return {g: rng.standard_normal(shapes[h]).astype(np.float32) for h, g in gguf_names(config).items()}


def without(keys: Mapping[str, Any], *removed: str) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key not in removed}


def test_llama_config(tmp_path: Path) -> None:
    expected = PRESETS["tiny-llama"].replace(
        rope_theta=5e5, rope_local_base_freq=5e5, bos_token_id=1, eos_token_ids=(2,), pad_token_id=3, rms_norm_eps=1e-5
    )
    file = write_model(tmp_path / "m.gguf", "llama", {**LLAMA, "rope.freq_base": 5e5}, tensors_of(expected))
    assert config_from_gguf(file) == expected


def test_gemma2_config_takes_llama_cpps_defaults(tmp_path: Path) -> None:
    config = PRESETS["tiny-gemma2"].replace(
        sliding_window=4096, rms_norm_eps=1e-5, bos_token_id=1, eos_token_ids=(2,), pad_token_id=3
    )
    assert config_from_gguf(write_model(tmp_path / "m.gguf", "gemma2", GEMMA2, tensors_of(config))) == config


def test_gemma3_config(tmp_path: Path) -> None:
    config = PRESETS["tiny-gemma3"].replace(
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_ids=(2,),
        pad_token_id=3,
        rope_scaling=RopeScaling("linear", 8.0),
        final_logit_softcapping=20.0,
    )
    keys = {
        **GEMMA3,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
        "final_logit_softcapping": 20.0,
    }
    assert config_from_gguf(write_model(tmp_path / "m.gguf", "gemma3", keys, tensors_of(config))) == config


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (3, alternate_layers(6, 3)),
        (7, ("sliding_attention",) * 6),
        (1, ("full_attention",) * 6),
        (
            np.array([False, True, True, False, True, True]),
            ("full_attention", "sliding_attention", "sliding_attention") * 2,
        ),
    ],
)
def test_window_patterns(tmp_path: Path, pattern: Any, expected: tuple[str, ...]) -> None:
    keys = {**GEMMA3, "attention.sliding_window_pattern": pattern}
    file = write_model(tmp_path / "m.gguf", "gemma3", keys, tensors_of(PRESETS["tiny-gemma3"]))
    assert config_from_gguf(file).layer_types == expected


def test_gemma3_without_a_window_has_no_local_layers(tmp_path: Path) -> None:
    keys = without(GEMMA3, "attention.sliding_window")
    config = config_from_gguf(write_model(tmp_path / "m.gguf", "gemma3", keys, tensors_of(PRESETS["tiny-gemma3"])))
    assert config.layer_types == ("full_attention",) * 6
    assert config.sliding_window is None


def test_end_tokens_named_and_found(tmp_path: Path) -> None:
    other = {
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 5,
        "tokenizer.ggml.eom_token_id": 2**32 - 1,
        "tokenizer.ggml.tokens": ["<pad>", "a", "<eos>", "<end_of_turn>", "b", "<|im_end|>"],
    }
    file = write_model(tmp_path / "m.gguf", "llama", LLAMA, tensors_of(PRESETS["tiny-llama"]), other)
    config = config_from_gguf(file)
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (None, (2, 5, 3), None)


def test_query_scale_of_the_wide_gemmas() -> None:
    # Gemma 2 27B: 4608 / 32 = 144, Gemma 3 27B: 5376 / 32 = 168, all others their head size.
    assert default_query_scalar("gemma2", 46, 4608, 32, 128) == 144
    assert default_query_scalar("gemma3", 62, 5376, 32, 128) == 168
    assert default_query_scalar("gemma2", 42, 3584, 16, 256) == 256


def test_stated_attention_scale(tmp_path: Path) -> None:
    keys = {**LLAMA, "attention.scale": 0.125}
    file = write_model(tmp_path / "m.gguf", "llama", keys, tensors_of(PRESETS["tiny-llama"]))
    assert config_from_gguf(file).query_pre_attn_scalar == 64


def test_llama3_scaling_is_recognised_by_its_factors(tmp_path: Path) -> None:
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    factors = llama3_frequency_factors(scaling, 5e5, 16)
    assert (factors[0], factors[-1]) == (1, 8)
    tensors = {**tensors_of(PRESETS["tiny-llama"]), ROPE_FREQS: factors}
    file = write_model(tmp_path / "m.gguf", "llama", {**LLAMA, "rope.freq_base": 5e5}, tensors)
    assert config_from_gguf(file).rope_scaling == scaling
    tensors[ROPE_FREQS] = np.linspace(1, 8, 8, dtype=np.float32)
    file = write_model(tmp_path / "m.gguf", "llama", {**LLAMA, "rope.freq_base": 5e5}, tensors)
    with pytest.raises(GgufError, match=r"must be Llama 3's: the factors in rope_freqs\.weight follow another rule"):
        config_from_gguf(file)


REFUSED = {
    "no architecture": ("llama", LLAMA, {"general.architecture": 3}, "general.architecture must be a string, got 3"),
    "unknown family": ("mamba", LLAMA, {}, "architecture must be one of llama, gemma2, gemma3, got 'mamba'"),
    "missing key": (
        "llama",
        without(LLAMA, "context_length"),
        {},
        "context_length must be one integer, got noth",
    ),
    "wrong kind": ("llama", {**LLAMA, "embedding_length": "64"}, {}, "embedding_length must be one integer, got '64'"),
    "bool": ("llama", {**LLAMA, "block_count": True}, {}, "block_count must be one integer, got True"),
    "uneven heads": (
        "llama",
        {**LLAMA, "attention.head_count": np.array([4, 2, 4, 4], np.int32)},
        {},
        "head_count must be one integer",
    ),
    "zero heads": ("llama", {**LLAMA, "attention.head_count": 0}, {}, "head_count must be at least 1, got 0"),
    "zero kv heads": ("llama", {**LLAMA, "attention.head_count_kv": 0}, {}, "num_key_value_heads must be at least 1"),
    "odd kv heads": ("llama", {**LLAMA, "attention.head_count_kv": 3}, {}, "must divide num_attention_heads"),
    "huge layers": (
        "llama",
        {**LLAMA, "block_count": 2**31},
        {},
        "block_count must be from 1 to the number of",
    ),
    "nan": ("llama", {**LLAMA, "rope.freq_base": float("nan")}, {}, "rope.freq_base must be a finite number, got nan"),
    "experts": ("llama", {**LLAMA, "expert_count": 8}, {}, "does not implement mixtures of experts"),
    "partial rotary": ("llama", {**LLAMA, "rope.dimension_count": 8}, {}, "must equal the head size 16, got 8"),
    "window": ("llama", {**LLAMA, "attention.sliding_window": 8}, {}, "attar's Llama has no local layers, got 8"),
    "yarn": ("llama", {**LLAMA, "rope.scaling.type": "yarn"}, {}, "must be 'none' or 'linear', got 'yarn'"),
    "negative": ("llama", {**LLAMA, "rope.scaling.factor": -1.0}, {}, "factor must be positive"),
    "gemma2 scaling": ("gemma2", {**GEMMA2, "rope.scaling.factor": 2.0}, {}, "must be 'none' for Gemma 2"),
    "gemma3 cap": ("gemma3", {**GEMMA3, "attn_logit_softcapping": 50.0}, {}, "Gemma 3 does not cap scores, got 50"),
    "no period": ("gemma3", {**GEMMA3, "attention.sliding_window_pattern": 0}, {}, "period of at least 1, got 0"),
    "token": ("llama", LLAMA, {"tokenizer.ggml.bos_token_id": 512}, "must be a token id below 512, got 512"),
    "tokens": ("llama", LLAMA, {"tokenizer.ggml.tokens": ["x"] * 513}, "has 513 entries but the embedding only 512"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_refuses_configs(tmp_path: Path, case: str) -> None:
    architecture, keys, other, message = REFUSED[case]
    preset = PRESETS[f"tiny-{architecture}"] if f"tiny-{architecture}" in PRESETS else PRESETS["tiny-llama"]
    file = write_model(tmp_path / "m.gguf", architecture, keys, tensors_of(preset), other)
    with pytest.raises(GgufError, match=message) as caught:
        config_from_gguf(file)
    assert str(caught.value).startswith(f"{tmp_path / 'm.gguf'}: ")


def test_llama_tensors_have_half_split_rows(tmp_path: Path) -> None:
    stored = tensors_of(PRESETS["tiny-llama"])
    loaded = tensors_from_gguf(write_model(tmp_path / "m.gguf", "llama", LLAMA, stored))
    assert "lm_head.weight" not in loaded
    for gguf_name, hf_name, heads in (("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2)):
        weight = loaded[f"model.layers.1.self_attn.{hf_name}.weight"]
        np.testing.assert_array_equal(interleave_rope_rows(weight, heads), stored[f"blk.1.{gguf_name}.weight"])
    np.testing.assert_array_equal(loaded["model.layers.3.self_attn.v_proj.weight"], stored["blk.3.attn_v.weight"])
    np.testing.assert_array_equal(loaded["model.norm.weight"], stored["output_norm.weight"])


def test_untied_head(tmp_path: Path) -> None:
    stored = tensors_of(PRESETS["tiny-llama"].replace(tie_word_embeddings=False))
    file = write_model(tmp_path / "m.gguf", "llama", LLAMA, stored)
    assert not config_from_gguf(file).tie_word_embeddings
    np.testing.assert_array_equal(tensors_from_gguf(file)["lm_head.weight"], stored["output.weight"])


@pytest.mark.parametrize(("architecture", "keys"), [("gemma2", GEMMA2), ("gemma3", GEMMA3)])
def test_gemma_norms_lose_their_one(tmp_path: Path, architecture: str, keys: Mapping[str, Any]) -> None:
    stored = tensors_of(PRESETS[f"tiny-{architecture}"])
    loaded = tensors_from_gguf(write_model(tmp_path / "m.gguf", architecture, keys, stored))
    prefix = "model.layers.2."
    for hf_name, gguf_name in (
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
    ):
        expected = stored[f"blk.2.{gguf_name}.weight"] - np.float32(1)
        np.testing.assert_array_equal(loaded[f"{prefix}{hf_name}.weight"], expected)
    np.testing.assert_array_equal(loaded[f"{prefix}self_attn.q_proj.weight"], stored["blk.2.attn_q.weight"])


def test_refuses_tensors_that_do_not_fit(tmp_path: Path) -> None:
    path, stored = tmp_path / "m.gguf", tensors_of(PRESETS["tiny-llama"])
    cases = {
        r"has no tensor 'blk\.2\.attn_v\.weight'": without(stored, "blk.2.attn_v.weight"),
        r"1 tensors .*llama does not use \(blk\.0\.attn_q\.bias\)": {
            **stored,
            "blk.0.attn_q.bias": np.ones(1, np.float32),
        },
        r"tensor 'blk\.0\.ffn_up\.weight' must be \[128, 64\] by the metadata, got \[64, 128\], at byte": {
            **stored,
            "blk.0.ffn_up.weight": stored["blk.0.ffn_down.weight"],
        },
    }
    for message, tensors in cases.items():
        with pytest.raises(GgufError, match=message):
            tensors_from_gguf(write_model(path, "llama", LLAMA, tensors))


def test_imports_without_jax() -> None:
    code = "import sys, attar.engine.gguf_reader; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
