"""Exported .tflite files against the JAX forward, on tiny models whose weights make every feature show."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from attar.engine.checkpoint import params_from_tensors, save_model
from attar.engine.config import ModelConfig, RopeScaling
from attar.engine.gguf_names import hf_shapes, is_norm
from attar.engine.presets import PRESETS
from attar.engine.tokenizer import load_tokenizer
from attar.engine.transformer import forward
from attar.export.errors import ExportError
from attar.export.tflite_emitter import export_tflite
from attar.export.tflite_reader import read_stored
from attar.export.tflite_weights import Precision
from attar.runtime.litert import LiteRtSession

Tensors = dict[str, NDArray[np.float32]]

CONFIGS = {
    "llama": PRESETS["tiny-llama"].replace(
        num_hidden_layers=2,
        layer_types=("full_attention",) * 2,
        rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 64),
        tie_word_embeddings=False,
    ),
    "gemma2": PRESETS["tiny-gemma2"].replace(
        num_hidden_layers=2,
        layer_types=("sliding_attention", "full_attention"),
        attn_logit_softcapping=4.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": PRESETS["tiny-gemma3"].replace(
        num_hidden_layers=2,
        layer_types=("sliding_attention", "full_attention"),
        rope_scaling=RopeScaling("linear", 8.0),
    ),
}
TOKENS = np.random.default_rng(1).integers(0, 512, 24)  # three times the window of 8


def make_tensors(config: ModelConfig, seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in hf_shapes(config).items()}


def save_checkpoint(folder: Path, config: ModelConfig, tensors: Tensors) -> Path:
    save_model(folder, config, params_from_tensors(config, tensors))
    return folder


def jax_logits(config: ModelConfig, tensors: Tensors) -> NDArray[np.float32]:
    """Logits of TOKENS, [T, V]; jitted as a whole because one compilation beats one per operator."""
    logits = jax.jit(forward, static_argnums=1)(params_from_tensors(config, tensors), config, TOKENS[None])
    return np.asarray(logits)[0]


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return CONFIGS[request.param]


def export_and_score(
    tmp_path: Path, config: ModelConfig, tensors: Tensors, weights: Precision
) -> tuple[Path, NDArray[np.float32]]:
    checkpoint = save_checkpoint(tmp_path / "model", config, tensors)
    result = export_tflite(checkpoint, tmp_path / "out" / "m.tflite", weights, context_length=40, prefill_lengths=(8,))
    with LiteRtSession.open(result.path, threads=1) as session:
        return result.path, session.score(TOKENS.tolist())


def test_float_logits_equal_the_jax_forward(tmp_path: Path, config: ModelConfig) -> None:
    tensors = make_tensors(config)
    _, logits = export_and_score(tmp_path, config, tensors, "fp32")
    np.testing.assert_allclose(logits, jax_logits(config, tensors), atol=2e-5)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"rope_scaling": None}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("gemma2", {"sliding_window": 9}),
        ("gemma3", {"rope_local_base_freq": 5000.0}),
        ("gemma3", {"query_pre_attn_scalar": 17.0}),
    ],
)
def test_features_show_at_the_tolerance_used(name: str, change: dict[str, object]) -> None:
    """The comparison above would fail if the exporter dropped or mistook one of these."""
    config = CONFIGS[name]
    tensors = make_tensors(config)
    difference = np.abs(jax_logits(config, tensors) - jax_logits(config.replace(**change), tensors))
    assert difference.max() > 1e-3


def test_int8_logits_stay_near_those_of_the_stored_weights(tmp_path: Path, config: ModelConfig) -> None:
    path, logits = export_and_score(tmp_path, config, make_tensors(config), "int8")
    stored_config, stored = read_stored(path)
    reference = jax_logits(stored_config, stored)
    # What is left is the runtime's rounding of activations to 8 bits.
    assert np.linalg.norm(logits - reference) < 0.04 * np.linalg.norm(reference)


def test_stored_weights_are_the_rounded_ones(tmp_path: Path, config: ModelConfig) -> None:
    tensors = make_tensors(config)
    path, _ = export_and_score(tmp_path, config, tensors, "int8")
    stored_config, stored = read_stored(path)
    assert stored_config == config
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        if is_norm(name):
            np.testing.assert_allclose(stored[name], tensor, atol=2e-7)
        else:
            half_step = np.abs(tensor).max(axis=1, keepdims=True) / 127 / 2
            assert (np.abs(stored[name] - tensor) <= half_step * 1.0001).all(), name


def test_tied_table_is_stored_once(tmp_path: Path) -> None:
    config = PRESETS["tiny-gemma2"]
    tied = save_checkpoint(tmp_path / "tied", config, make_tensors(config))
    untied_config = config.replace(tie_word_embeddings=False)
    untied = save_checkpoint(tmp_path / "untied", untied_config, make_tensors(untied_config))
    sizes = [
        export_tflite(source, tmp_path / f"{source.name}.tflite", "int8", 16, (8,)).size_bytes
        for source in (tied, untied)
    ]
    assert sizes[1] - sizes[0] >= config.vocab_size * config.hidden_size


def test_prefill_lengths_beyond_the_context_are_left_out(tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    checkpoint = save_checkpoint(tmp_path / "model", config, make_tensors(config))
    result = export_tflite(checkpoint, tmp_path / "m.tflite", "fp32", 16, prefill_lengths=(8, 32))
    assert result.context_length == 16
    assert "holds 16 positions" in result.warnings[0]
    assert set(Interpreter(str(result.path)).get_signature_list()) == {"prefill_8", "decode", "score_16"}


def test_context_length_is_checked(tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    checkpoint = save_checkpoint(tmp_path / "model", config, make_tensors(config))
    with pytest.raises(ExportError, match="between 2 and the model's 256, got 257"):
        export_tflite(checkpoint, tmp_path / "m.tflite", "fp32", 257)


def test_nan_weights_name_the_tensor_and_keep_the_earlier_file(tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    out = tmp_path / "m.tflite"
    out.write_bytes(b"earlier")
    tensors = make_tensors(config)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    checkpoint = save_checkpoint(tmp_path / "model", config, tensors)
    with pytest.raises(ExportError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        export_tflite(checkpoint, out, "int8")
    assert out.read_bytes() == b"earlier"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.tflite", "model"]


def test_tokenizers_of_different_models_do_not_share_a_folder(tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    checkpoint = save_checkpoint(tmp_path / "model", config, make_tensors(config))
    write_tokenizer(checkpoint, "one template")
    out = tmp_path / "out" / "m.tflite"
    export_tflite(checkpoint, out, "int8", 16, (8,))
    beside, original = load_tokenizer(out.parent), load_tokenizer(checkpoint)
    assert beside.chat_template == "one template"
    assert beside.eos_token_ids == original.eos_token_ids == (1, *config.eos_token_ids)
    export_tflite(checkpoint, out.with_name("again.tflite"), "fp32", 16, (8,))
    write_tokenizer(checkpoint, "another template")
    with pytest.raises(ExportError, match="holds the tokenizer or chat template of another model"):
        export_tflite(checkpoint, out, "int8", 16, (8,))


def write_tokenizer(folder: Path, template: str) -> None:
    vocabulary = {f"t{i}": i for i in range(512)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    settings = json.dumps({"eos_token": "t1", "chat_template": template})
    (folder / "tokenizer_config.json").write_text(settings, encoding="utf-8")
