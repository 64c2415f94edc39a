"""Exported ONNX folders, run by onnxruntime, against the JAX forward on the weights that they store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from attar.engine.checkpoint import load_config, load_params, params_from_tensors, read_tensors
from attar.engine.config import ModelConfig
from attar.engine.transformer import forward
from attar.export.errors import ExportError
from attar.export.onnx_emitter import export_onnx, stored_tensors
from attar.export.onnx_weights import WeightType, block_format, dequantize_blocks, quantize_blocks
from attar.runtime.ort import OrtSession

MakeCheckpoint = Callable[..., Path]
Float32 = NDArray[np.float32]


jitted_forward = jax.jit(forward, static_argnames="config")


def jax_logits(config: ModelConfig, tensors: dict[str, Float32], tokens: list[int]) -> Float32:
    return np.asarray(jitted_forward(params_from_tensors(config, tensors), config, np.array([tokens])))[0]


def score(folder: Path, tokens: list[int]) -> Float32:
    with OrtSession.open(folder, threads=1) as session:
        return session.score(tokens)


def nodes(folder: Path, op: str) -> list[Any]:
    graph = onnx.load_model(str(folder / "model.onnx"), load_external_data=False).graph
    return [node for node in graph.node if node.op_type == op]


def attribute(node: Any, name: str) -> Any:
    return next(onnx.helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name)


@pytest.mark.parametrize(("weights", "tolerance"), [("fp32", 2e-5), ("int8", 2e-5), ("int4", 2e-5)])
def test_logits_equal_the_jax_forward_on_the_stored_weights(
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    config: ModelConfig,
    tokens: list[int],
    weights: WeightType,
    tolerance: float,
) -> None:
    folder = export_onnx(make_checkpoint(config), tmp_path / "onnx", weights, accuracy_level=0).path
    expected = jax_logits(config, stored_tensors(folder), tokens)
    np.testing.assert_allclose(score(folder, tokens), expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_rounded_activations_stay_close(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, config: ModelConfig, tokens: list[int], weights: WeightType
) -> None:
    folder = export_onnx(make_checkpoint(config), tmp_path / "onnx", weights).path
    expected = jax_logits(config, stored_tensors(folder), tokens)
    error = np.sqrt(np.mean((score(folder, tokens) - expected) ** 2) / np.mean(expected**2))
    assert 0 < error < 0.05  # 8 bits round by 0.4 % of a block's largest activation, some products deep


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
def test_each_feature_shows_at_the_tolerance_used(
    make_checkpoint: MakeCheckpoint, tokens: list[int], name: str, change: dict[str, Any]
) -> None:
    """The comparison with JAX would fail if the exporter dropped or mistook one of these."""
    checkpoint = make_checkpoint(name)
    config, tensors = load_config(checkpoint), read_tensors(checkpoint)
    expected = jax_logits(config, tensors, tokens)
    changed = jax_logits(config.replace(**change), tensors, tokens)
    assert np.abs(changed - expected).max() > 20 * 2e-5 * np.abs(expected).max()


def test_float_weights_are_stored_unchanged(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint("llama")
    stored = stored_tensors(export_onnx(checkpoint, tmp_path / "onnx").path)
    expected = read_tensors(checkpoint)
    assert stored.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_array_equal(stored[name], weight)


def test_queries_keys_and_values_are_one_product_unless_normed(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    packed = export_onnx(make_checkpoint("gemma2", name="a"), tmp_path / "packed").path
    normed = export_onnx(make_checkpoint("gemma3", name="b"), tmp_path / "normed").path
    assert [list(node.input[1:3]) for node in nodes(packed, "GroupQueryAttention")] == [["", ""]] * 2
    assert all(node.input[1] and node.input[2] for node in nodes(normed, "GroupQueryAttention"))


def test_local_layers_carry_the_window(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = export_onnx(make_checkpoint("gemma3"), tmp_path / "onnx").path
    windows = [attribute(node, "local_window_size") for node in nodes(folder, "GroupQueryAttention")]
    assert windows == [8, -1]


def test_a_tied_table_is_stored_once(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = export_onnx(make_checkpoint("llama"), tmp_path / "onnx", "int4").path
    graph = onnx.load_model(str(folder / "model.onnx"), load_external_data=False).graph
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}["offset"]
        for tensor in graph.initializer
        if tensor.name.startswith("model.embed_tokens.weight.") and not tensor.name.endswith("scales")
    }
    assert len(places) == 2
    assert len(set(places.values())) == 1


def test_int4_keeps_the_table_at_eight_bits_unless_told(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint("llama")
    default = export_onnx(checkpoint, tmp_path / "default", "int4")
    smaller = export_onnx(checkpoint, tmp_path / "smaller", "int4", embedding="int4")
    assert [attribute(node, "bits") for node in nodes(default.path, "GatherBlockQuantized")] == [8]
    assert [attribute(node, "bits") for node in nodes(smaller.path, "GatherBlockQuantized")] == [4]
    assert smaller.size_bytes < default.size_bytes


def test_the_folder_describes_itself(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint("gemma3")
    result = export_onnx(checkpoint, tmp_path / "onnx", "int8", context_length=100)
    config = json.loads((result.path / "config.json").read_text())
    genai = json.loads((result.path / "genai_config.json").read_text())
    provenance = json.loads((result.path / "attar.json").read_text())
    assert ModelConfig.from_hf(config) == load_config(checkpoint)
    assert genai["model"]["type"] == "gemma3_text"
    assert genai["model"]["context_length"] == result.context_length == 100
    assert genai["model"]["decoder"]["sliding_window"]["layers"] == [0]
    assert provenance["seed"] == 0
    assert provenance["export"]["weights"] == "int8"
    assert any("no tokenizer" in warning for warning in result.warnings)


def test_every_input_that_genai_names_is_in_the_graph(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = export_onnx(make_checkpoint("gemma2"), tmp_path / "onnx").path
    decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    graph = onnx.load_model(str(folder / "model.onnx"), load_external_data=False).graph
    inputs, outputs = {entry.name for entry in graph.input}, {entry.name for entry in graph.output}
    for layer in range(decoder["num_hidden_layers"]):
        assert {name.replace("%d", str(layer)) for name in decoder["inputs"].values()} <= inputs
        assert {name.replace("%d", str(layer)) for name in decoder["outputs"].values()} <= outputs


def test_an_earlier_export_is_replaced(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint, out = make_checkpoint("llama"), tmp_path / "onnx"
    export_onnx(checkpoint, out, "fp32")
    smaller = export_onnx(checkpoint, out, "int4")
    assert sum(file.stat().st_size for file in out.glob("model.onnx*")) == smaller.size_bytes
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_a_foreign_folder_is_left_alone(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    out = tmp_path / "onnx"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"onnx: was not written by this exporter alone .*'thesis.txt'"):
        export_onnx(make_checkpoint("llama"), out)
    assert (out / "thesis.txt").read_text() == "mine"


def test_weights_that_are_not_finite_are_refused_and_leave_the_earlier_export(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    out = tmp_path / "onnx"
    checkpoint = make_checkpoint("llama")
    export_onnx(checkpoint, out)
    before = (out / "model.onnx.data").read_bytes()
    tensors = read_tensors(checkpoint)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    with pytest.raises(ExportError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        export_onnx(make_checkpoint("llama", tensors, "bad"), out)
    assert (out / "model.onnx.data").read_bytes() == before


def test_a_context_beyond_the_model_is_refused(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="between 1 and the model's 256, got 257"):
        export_onnx(make_checkpoint("llama"), tmp_path / "onnx", context_length=257)


def test_a_truncated_data_file_is_named(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = export_onnx(make_checkpoint("llama"), tmp_path / "onnx").path
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-5000])
    with pytest.raises(ExportError, match=r"model\.onnx\.data: shorter than .* needs"):
        stored_tensors(folder)


@pytest.mark.parametrize(("weights", "bound"), [("int8", 1 / 254), ("int4", 1 / 8)])
@pytest.mark.parametrize("cols", [32, 48, 64, 100])
def test_blocks_round_within_their_bound(weights: WeightType, bound: float, cols: int) -> None:
    matrix = np.random.default_rng(0).normal(size=(5, cols)).astype(np.float32)
    form = block_format(weights, cols)
    assert form is not None
    data, scales = quantize_blocks(matrix, form)
    assert data.shape == (5, form.num_blocks(cols), form.block_cols * form.bits // 8)
    restored = dequantize_blocks(data, scales, form.bits, cols)
    padded = np.pad(np.abs(matrix), ((0, 0), (0, form.num_blocks(cols) * form.block_cols - cols)))
    largest = padded.reshape(*scales.shape, -1).max(axis=-1).repeat(form.block_cols, axis=1)[:, :cols]
    assert (np.abs(restored - matrix) <= bound * largest * 1.0001).all()


def test_rounding_a_rounded_matrix_changes_nothing() -> None:
    matrix = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    form = block_format("int8", 64)
    assert form is not None
    once = dequantize_blocks(*quantize_blocks(matrix, form), form.bits, 64)
    twice = dequantize_blocks(*quantize_blocks(once, form), form.bits, 64)
    np.testing.assert_allclose(twice, once, rtol=1e-6)


def test_the_exported_model_is_the_checkpoint(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, config: ModelConfig, tokens: list[int]
) -> None:
    """Not only self-consistent: the float export computes the checkpoint's own logits."""
    checkpoint = make_checkpoint(config)
    folder = export_onnx(checkpoint, tmp_path / "onnx").path
    expected = np.asarray(jitted_forward(load_params(checkpoint)[1], config, np.array([tokens])))[0]
    np.testing.assert_allclose(score(folder, tokens), expected, atol=2e-5 * np.abs(expected).max())
