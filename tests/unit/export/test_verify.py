"""Verification passes what is right and refuses what was tampered with, for every format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest

from attar.engine.config import ModelConfig
from attar.engine.presets import PRESETS
from attar.export.errors import ExportError
from attar.export.onnx_emitter import export_onnx
from attar.export.onnx_weights import WeightType
from attar.export.tflite_emitter import export_tflite
from attar.export.verify import VerificationError, VerifyReport, report_path, stored_tensors, verify_export
from attar.export.verify_compare import Figures, largest_weight_error
from attar.export.verify_limits import limits_for
from attar.runtime.session import Session, open_session

MakeCheckpoint = Callable[..., Path]


def open_quietly(path: Path) -> Session:
    return open_session(path, threads=1)


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_an_honest_onnx_export_passes(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, config: ModelConfig, tokens: list[int], weights: WeightType
) -> None:
    checkpoint = make_checkpoint(config)
    folder = export_onnx(checkpoint, tmp_path / "onnx", weights).path
    report = verify_export(checkpoint, folder, weights, open_session=open_quietly, prompts=[tokens])
    written = json.loads(report_path(folder).read_text())
    assert written["passed"] is True
    assert written["mean_kl"] == report.mean_kl
    assert report.longest_prompt_tokens == 24
    if weights == "fp32":
        assert report.quantization_perplexity_ratio == pytest.approx(1.0, abs=1e-5)
    assert report.num_tokens == 25  # each position once, and the prefill's last row again


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_an_honest_tflite_export_passes(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, tokens: list[int], weights: Literal["fp32", "int8"]
) -> None:
    checkpoint = make_checkpoint("gemma2")
    file = export_tflite(checkpoint, tmp_path / "out" / "m.tflite", weights, context_length=32).path
    assert verify_export(checkpoint, file, weights, open_session=open_quietly, prompts=[tokens]).passed


def test_the_default_prompt_is_longer_than_the_window(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint("gemma3")
    folder = export_onnx(checkpoint, tmp_path / "onnx").path
    report = verify_export(checkpoint, folder, "fp32", open_session=open_quietly)
    assert report.longest_prompt_tokens == 256


def edit_graph(folder: Path, edit: Callable[[Any], None]) -> None:
    file = folder / "model.onnx"
    model = onnx.load_model(str(file), load_external_data=False)
    edit(model.graph)
    onnx.save_model(model, str(file))


def set_attribute(op: str, name: str, value: float) -> Callable[[Any], None]:
    """Changes one attribute of the first node of a kind."""

    def edit(graph: Any) -> None:
        node = next(node for node in graph.node if node.op_type == op)
        kept = [entry for entry in node.attribute if entry.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return edit


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("gemma2", set_attribute("GroupQueryAttention", "local_window_size", 9)),
        ("gemma2", set_attribute("GroupQueryAttention", "softcap", 0.0)),
        ("gemma3", set_attribute("GroupQueryAttention", "scale", 0.2)),
        ("llama", set_attribute("GroupQueryAttention", "rotary_interleaved", 1)),
        ("llama", set_attribute("SimplifiedLayerNormalization", "epsilon", 1e-2)),
    ],
)
def test_a_graph_that_computes_something_else_fails(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, tokens: list[int], name: str, edit: Callable[[Any], None]
) -> None:
    checkpoint = make_checkpoint(name)
    folder = export_onnx(checkpoint, tmp_path / "onnx").path
    edit_graph(folder, edit)
    with pytest.raises(VerificationError, match="max_abs_error must be at most"):
        verify_export(checkpoint, folder, "fp32", open_session=open_quietly, prompts=[tokens])
    assert json.loads(report_path(folder).read_text())["passed"] is False
    assert (folder / "model.onnx").is_file()


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_damaged_weights_fail(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, tokens: list[int], weights: WeightType
) -> None:
    """The runtime then computes the damaged model faithfully: only the comparison of weights can tell."""
    checkpoint = make_checkpoint("llama")
    folder = export_onnx(checkpoint, tmp_path / "onnx", weights).path
    data = folder / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[1001] ^= 0x70  # in the token table, which comes first
    data.write_bytes(content)
    with pytest.raises(VerificationError, match="weight_error must be at most"):
        verify_export(checkpoint, folder, weights, open_session=open_quietly, prompts=[tokens])


def test_another_checkpoints_export_fails(make_checkpoint: MakeCheckpoint, tmp_path: Path, tokens: list[int]) -> None:
    checkpoint = make_checkpoint("llama")
    folder = export_onnx(checkpoint, tmp_path / "onnx").path
    other = make_checkpoint("llama-untied", name="other")
    with pytest.raises(VerificationError, match=r"weight_error must be at most .* got inf"):
        verify_export(other, folder, "fp32", open_session=open_quietly, prompts=[tokens])
    assert json.loads(report_path(folder).read_text())["weight_error"] is None


def test_logits_that_are_not_numbers_fail() -> None:
    figures = Figures()
    figures.add(np.zeros((1, 4), np.float32), np.full((1, 4), np.nan, np.float32), [])
    report = VerifyReport("fp32", 1, 1, 0.0, figures.max_abs_error, figures.kl, 1.0, 1.0, 1.0, limits_for("fp32"))
    assert [fault.split()[0] for fault in report.faults] == ["mean_kl", "max_abs_error"]


def test_figures_of_known_distributions() -> None:
    figures = Figures()
    reference = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], np.float32))
    measured = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]], np.float32))
    figures.add(reference, measured, [2])
    assert figures.kl == pytest.approx(0.5 * np.log(2) - 0.25 * np.log(2))
    assert figures.max_abs_error == pytest.approx(np.log(2))
    assert (figures.positions, figures.agreed) == (2, 1)
    assert figures.measured_nll == pytest.approx(np.log(4))


def test_weight_error_is_relative_to_the_row() -> None:
    weight = np.array([[1.0, -4.0], [0.0, 0.0]], np.float32)
    assert largest_weight_error([("w", weight)], {"w": weight + np.array([[0.5], [0.0]], np.float32)}) == 0.125
    assert largest_weight_error([("w", weight)], {"w": weight + np.array([[0.0], [0.5]], np.float32)}) == 0.5
    assert largest_weight_error([("w", weight)], {}) == np.inf


def test_weight_error_of_norms_is_that_of_the_stored_sum() -> None:
    """A Gemma norm of 1e-4 is stored as 1.0001, whose rounding is large beside 1e-4 and small beside 1."""
    norm = np.full(8, 1e-4, np.float32)
    stored = (norm + np.float32(1)) - np.float32(1)
    assert largest_weight_error([("norm", norm)], {"norm": stored}) > 1e-5
    assert largest_weight_error([("norm", norm)], {"norm": stored}, norm_offset=1.0) < 1e-7


def test_an_unknown_file_or_scheme_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"")
    with pytest.raises(ExportError, match=r"model\.bin: no exported model"):
        stored_tensors(file, PRESETS["tiny-llama"])
    with pytest.raises(ValueError, match=r"scheme must be one of .*, got 'int3'"):
        limits_for("int3")
