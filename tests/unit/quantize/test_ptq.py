"""A scheme applied to a checkpoint folder: the written weights, the report, and refusals."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from attar.engine.checkpoint import (
    CheckpointError,
    load_config,
    read_tensors,
    save_model,
    stream_tensors,
    tensors_from_params,
)
from attar.engine.presets import PRESETS
from attar.engine.safetensors_files import read_json, write_safetensors
from attar.engine.transformer import init_params
from attar.quantize.blocks import dequantize, quantize
from attar.quantize.policy import Assignment, make_scheme
from attar.quantize.ptq import QuantizeError, encode_tensor, measure_scheme, quantize_checkpoint

CONFIG = PRESETS["tiny-llama"].replace(num_hidden_layers=1, layer_types=("full_attention",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "student"
    save_model(path, CONFIG, init_params(CONFIG, jax.random.key(1)), provenance={"seed": 1})
    return path


def test_writes_the_weights_that_the_scheme_can_hold(folder: Path, tmp_path: Path) -> None:
    scheme = make_scheme("Q4_0")
    report = quantize_checkpoint(folder, tmp_path / "rounded", scheme)
    before, after = read_tensors(folder), read_tensors(tmp_path / "rounded")
    name = "model.layers.0.mlp.up_proj.weight"
    np.testing.assert_array_equal(after[name], dequantize("Q4_0", quantize("Q4_0", before[name]), 64))
    np.testing.assert_array_equal(after["model.norm.weight"], before["model.norm.weight"])
    assert read_json(tmp_path / "rounded" / "attar.json") == {
        "seed": 1,
        "quantized_from": "student",
        "scheme": "Q4_0",
    }
    assert load_config(tmp_path / "rounded") == load_config(folder)
    assert report == measure_scheme(folder, scheme)


def test_rounding_twice_changes_nothing(folder: Path, tmp_path: Path) -> None:
    for name in ("Q8_0", "Q4_0", "Q4_1", "Q5_0"):
        once, twice = tmp_path / f"{name}-1", tmp_path / f"{name}-2"
        quantize_checkpoint(folder, once, make_scheme(name))
        report = quantize_checkpoint(once, twice, make_scheme(name))
        assert report.relative_error == 0


def test_report_measures_what_it_says(folder: Path) -> None:
    report = measure_scheme(folder, make_scheme("Q8_0"))
    tensors = read_tensors(folder)
    assert {tensor.name for tensor in report.tensors} == set(tensors)
    found = next(t for t in report.tensors if t.name.endswith("q_proj.weight"))
    weights = tensors[found.name]
    decoded = dequantize("Q8_0", quantize("Q8_0", weights), 64)
    assert found.relative_error == pytest.approx(np.linalg.norm(decoded - weights) / np.linalg.norm(weights), rel=1e-5)
    assert found.size_bytes == 64 * 68
    total = sum(t.size_bytes for t in report.tensors)
    assert report.size_bytes == total
    assert report.bits_per_weight == pytest.approx(8 * total / CONFIG.num_parameters)
    errors = [measure_scheme(folder, make_scheme(name)).relative_error for name in ("F32", "Q8_0", "Q5_0", "Q4_0")]
    assert errors[0] == 0
    assert errors == sorted(errors)


def test_zeros_have_no_error() -> None:
    _, report = encode_tensor(Assignment("w", (2, 32), "Q8_0"), np.zeros((2, 32), np.float32))
    assert report.relative_error == 0


def test_large_tensors_are_encoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    whole = encode_tensor(Assignment("w", (9, 64), "Q4_1"), weights)
    monkeypatch.setattr("attar.quantize.ptq._CHUNK_VALUES", 128)
    data, report = encode_tensor(Assignment("w", (9, 64), "Q4_1"), weights)
    np.testing.assert_array_equal(data, whole[0])
    assert report.relative_error == pytest.approx(whole[1].relative_error)


def test_a_second_copy_of_a_tied_head_is_skipped(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = tensors_from_params(CONFIG, init_params(CONFIG, jax.random.key(1)))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_safetensors(tmp_path / "model.safetensors", tensors)
    names = [name for name, _ in stream_tensors(tmp_path, CONFIG)]
    assert sorted(names) == sorted(set(tensors) - {"lm_head.weight"})


def test_names_the_tensor_that_is_not_finite(folder: Path, tmp_path: Path) -> None:
    params = init_params(CONFIG, jax.random.key(1))
    params["layers"]["o_proj"] = params["layers"]["o_proj"].at[0, 5, 6].set(np.nan)
    save_model(tmp_path / "bad", CONFIG, params)
    message = r"tensor 'model\.layers\.0\.self_attn\.o_proj\.weight': weights must be finite, got nan in row 5, col"
    with pytest.raises(QuantizeError, match=message):
        quantize_checkpoint(tmp_path / "bad", tmp_path / "out", make_scheme("Q8_0"))
    assert not (tmp_path / "out").exists()


def test_refuses_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        measure_scheme(tmp_path, make_scheme("Q8_0"))
