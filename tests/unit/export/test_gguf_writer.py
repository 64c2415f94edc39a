"""Checkpoint to GGUF and back: weights, config, tokenizer, and the models that GGUF cannot carry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from attar.engine.checkpoint import load_params, read_tensors, save_model
from attar.engine.config import ModelConfig, RopeScaling
from attar.engine.gguf_names import gguf_names
from attar.engine.gguf_reader import config_from_gguf, read_gguf
from attar.engine.presets import PRESETS
from attar.engine.tokenizer import load_tokenizer
from attar.engine.transformer import forward, init_params
from attar.export.errors import ExportError
from attar.export.gguf_metadata import window_period
from attar.export.gguf_writer import dequantized_tensors, export_gguf
from attar.quantize.blocks import dequantize, quantize
from attar.quantize.policy import make_scheme

_VOCABULARY = 259
_TINY = ["tiny-llama", "tiny-gemma2", "tiny-gemma3"]


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    """Each model runs once: compiling is what costs, so XLA's expensive passes are left out."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three special tokens and the 256 bytes."""
    folder = tmp_path_factory.mktemp("tokenizer")
    special = ["<pad>", "<s>", "</s>"]
    symbols = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = tokenizers.Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "chat_template": "{{ messages }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def tiny(preset: str, **changes: Any) -> ModelConfig:
    plain = {"vocab_size": _VOCABULARY, "bos_token_id": 1, "eos_token_ids": (2,), "pad_token_id": 0}
    return PRESETS[preset].replace(**{**plain, **changes})


def save_student(folder: Path, config: ModelConfig, tokenizer_folder: Path | None) -> Path:
    """A model with random weights, norms included, which `init_params` would make constant."""
    params = init_params(config, jax.random.key(0))
    rng = np.random.default_rng(1)
    noisy = {n: w + 0.3 * rng.standard_normal(w.shape).astype(np.float32) for n, w in params["layers"].items()}
    save_model(folder, config, {**params, "layers": noisy}, tokenizer_folder)
    return folder


def logits(source: Path) -> np.ndarray:
    config, params = load_params(source)
    tokens = jnp.arange(24, dtype=jnp.int32)[None] % _VOCABULARY
    return np.asarray(forward(params, config, tokens))


@pytest.mark.parametrize("preset", _TINY)
def test_f32_export_is_the_same_model(tmp_path: Path, tokenizer_folder: Path, preset: str) -> None:
    config = tiny(preset)
    student = save_student(tmp_path / "student", config, tokenizer_folder)
    result = export_gguf(student, tmp_path / "m.gguf", "F32")
    assert config_from_gguf(read_gguf(tmp_path / "m.gguf")) == config
    assert result.size_bytes == (tmp_path / "m.gguf").stat().st_size
    assert result.warnings == ()
    before, after = read_tensors(student), dequantized_tensors(tmp_path / "m.gguf")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        # Gemma's 1 + w costs the last bit of w.
        np.testing.assert_allclose(after[name], weight, atol=3e-7 if "norm" in name else 0, rtol=0)


@pytest.mark.parametrize("scheme", ["F16", "BF16", "Q8_0", "Q5_0", "Q4_1", "Q4_0"])
def test_weights_are_those_of_the_scheme(tmp_path: Path, tokenizer_folder: Path, scheme: str) -> None:
    student = save_student(tmp_path / "student", tiny("tiny-llama"), tokenizer_folder)
    result = export_gguf(student, tmp_path / "m.gguf", scheme)
    exact, stored = read_tensors(student), dequantized_tensors(tmp_path / "m.gguf")
    for name, kind in (
        ("model.layers.2.self_attn.q_proj", scheme),
        ("model.embed_tokens", make_scheme(scheme).embedding),
    ):
        weight = exact[f"{name}.weight"]
        np.testing.assert_array_equal(
            stored[f"{name}.weight"], dequantize(kind, quantize(kind, weight), weight.shape[1])
        )
    assert result.report.size_bytes == sum(t.size_bytes for t in read_gguf(tmp_path / "m.gguf").tensors.values())


def test_rows_that_blocks_do_not_divide_are_reported(tmp_path: Path, tokenizer_folder: Path) -> None:
    student = save_student(tmp_path / "student", tiny("tiny-llama", intermediate_size=120), tokenizer_folder)
    result = export_gguf(student, tmp_path / "m.gguf", "Q4_0")
    assert len(result.warnings) == 4
    assert "layers.0.mlp.down_proj.weight is stored as F16: rows of 120 are not a multiple" in result.warnings[0]
    assert read_gguf(tmp_path / "m.gguf").tensors["blk.0.ffn_down.weight"].type_name == "F16"


@pytest.mark.parametrize("preset", _TINY)
def test_a_gguf_of_the_same_types_is_copied_bit_for_bit(tmp_path: Path, tokenizer_folder: Path, preset: str) -> None:
    student = save_student(tmp_path / "student", tiny(preset), tokenizer_folder)
    export_gguf(student, tmp_path / "a.gguf", "Q4_1")
    result = export_gguf(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q4_1")
    assert result.report.relative_error == 0
    a, b = read_gguf(tmp_path / "a.gguf"), read_gguf(tmp_path / "b.gguf")
    for name in a.tensors:
        np.testing.assert_array_equal(a.raw(name), b.raw(name))
    assert a.metadata.keys() == b.metadata.keys()
    for key, value in a.metadata.items():
        np.testing.assert_array_equal(b.metadata[key], value)


@pytest.mark.parametrize("preset", _TINY)
def test_query_scale_is_folded_into_the_weights(tmp_path: Path, tokenizer_folder: Path, preset: str) -> None:
    student = save_student(tmp_path / "student", tiny(preset, query_pre_attn_scalar=5.0), tokenizer_folder)
    export_gguf(student, tmp_path / "m.gguf", "F32")
    assert config_from_gguf(read_gguf(tmp_path / "m.gguf")).query_pre_attn_scalar == 16
    np.testing.assert_allclose(logits(tmp_path / "m.gguf"), logits(student), atol=2e-5)


def test_llama3_scaling_survives(tmp_path: Path, tokenizer_folder: Path) -> None:
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 32)
    student = save_student(tmp_path / "student", tiny("tiny-llama", rope_scaling=scaling), tokenizer_folder)
    export_gguf(student, tmp_path / "m.gguf", "F32")
    assert config_from_gguf(read_gguf(tmp_path / "m.gguf")).rope_scaling == scaling


def test_gemma3_linear_scaling_survives(tmp_path: Path, tokenizer_folder: Path) -> None:
    config = tiny("tiny-gemma3", rope_scaling=RopeScaling("linear", 8.0))
    student = save_student(tmp_path / "student", config, tokenizer_folder)
    export_gguf(student, tmp_path / "m.gguf", "F32")
    assert config_from_gguf(read_gguf(tmp_path / "m.gguf")) == config


def test_irregular_layers_are_written_and_reported(tmp_path: Path, tokenizer_folder: Path) -> None:
    kinds = ("sliding_attention", "full_attention", "full_attention", "sliding_attention")
    config = tiny("tiny-gemma2", layer_types=kinds)
    result = export_gguf(save_student(tmp_path / "s", config, tokenizer_folder), tmp_path / "m.gguf", "F32")
    assert config_from_gguf(read_gguf(tmp_path / "m.gguf")).layer_types == kinds
    assert "follow no period" in result.warnings[0]


def test_window_period() -> None:
    full, local = "full_attention", "sliding_attention"
    assert window_period((full,) * 3) == 1
    assert window_period((local, full, local, full)) == 2
    assert window_period((local,) * 4) == 5
    assert window_period((full, local)) is None


def test_the_tokenizer_travels(tmp_path: Path, tokenizer_folder: Path) -> None:
    student = save_student(tmp_path / "student", tiny("tiny-llama"), tokenizer_folder)
    export_gguf(student, tmp_path / "m.gguf", "F16")
    before, after = load_tokenizer(student), load_tokenizer(tmp_path / "m.gguf")
    text = "naïve 東京 <s>\n"
    assert after.encode(text) == before.encode(text)
    assert (after.chat_template, after.bos_token_id) == ("{{ messages }}", 1)


def test_vocabulary_is_padded_to_the_embedding(tmp_path: Path, tokenizer_folder: Path) -> None:
    config = tiny("tiny-llama", vocab_size=264, eos_token_ids=(2, 7))
    export_gguf(save_student(tmp_path / "s", config, tokenizer_folder), tmp_path / "m.gguf", "F16")
    file = read_gguf(tmp_path / "m.gguf")
    assert file.metadata["tokenizer.ggml.tokens"][258:] == [*file.metadata["tokenizer.ggml.tokens"][258:259]] + [
        f"[PAD{i}]" for i in range(259, 264)
    ]
    assert list(file.metadata["tokenizer.ggml.token_type"][259:]) == [5] * 5
    assert file.metadata["tokenizer.ggml.eot_token_id"] == 7
    assert config_from_gguf(file).eos_token_ids == (2, 7)


def test_general_metadata(tmp_path: Path, tokenizer_folder: Path) -> None:
    student = save_student(tmp_path / "my-student", tiny("tiny-llama"), tokenizer_folder)
    export_gguf(student, tmp_path / "m.gguf", "Q4_0")
    metadata = read_gguf(tmp_path / "m.gguf").metadata
    assert {k: v for k, v in metadata.items() if k.startswith("general.")} == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "my-student",
        "general.size_label": "165K",
        "general.file_type": 2,
        "general.quantization_version": 2,
    }


REFUSED: dict[str, tuple[ModelConfig, str]] = {
    "untied gemma": (tiny("tiny-gemma2", tie_word_embeddings=False), "a separate lm_head"),
    "uncapped gemma2": (tiny("tiny-gemma2", attn_logit_softcapping=None), "always caps its logits"),
    "llama3 gemma": (
        tiny("tiny-gemma3", rope_scaling=RopeScaling("llama3", 8.0)),
        "Gemma scales RoPE linearly only, got llama3",
    ),
    "small embedding": (tiny("tiny-llama", vocab_size=250), "must not exceed the embedding's 250 rows, got 259"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_refuses_what_gguf_cannot_carry(tmp_path: Path, tokenizer_folder: Path, case: str) -> None:
    config, message = REFUSED[case]
    student = save_student(tmp_path / "student", config, tokenizer_folder)
    with pytest.raises(ExportError, match=message):
        export_gguf(student, tmp_path / "m.gguf", "F16")
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


def test_nan_weights_name_the_tensor_and_keep_the_old_file(tmp_path: Path, tokenizer_folder: Path) -> None:
    config = tiny("tiny-llama")
    params = init_params(config, jax.random.key(0))
    params["layers"]["up_proj"] = params["layers"]["up_proj"].at[1, 2, 3].set(jnp.nan)
    save_model(tmp_path / "bad", config, params, tokenizer_folder)
    (tmp_path / "m.gguf").write_bytes(b"before")
    with pytest.raises(
        ExportError, match=r"tensor 'model\.layers\.1\.mlp\.up_proj\.weight': .* nan in row 2, column 3"
    ):
        export_gguf(tmp_path / "bad", tmp_path / "m.gguf", "Q8_0")
    assert (tmp_path / "m.gguf").read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "m.gguf"]


def test_table_lists_every_tensor_in_the_networks_order(tmp_path: Path, tokenizer_folder: Path) -> None:
    config = tiny("tiny-gemma3")
    export_gguf(save_student(tmp_path / "s", config, tokenizer_folder), tmp_path / "m.gguf", "F16")
    assert list(read_gguf(tmp_path / "m.gguf").tensors) == list(gguf_names(config).values())
