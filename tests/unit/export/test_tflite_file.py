"""The file layout: alignment, limits, and failures that leave nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from attar.export import tflite_ops as ops
from attar.export.errors import ExportError
from attar.export.tflite_file import ALIGNMENT_BYTES, FLOAT32, INT8, ModelBuilder, StoredTensor
from attar.export.tflite_graph import GraphBuilder
from attar.export.tflite_reader import read_stored


def linear_model(rows: int, signatures: tuple[str, ...] = ("a", "b")) -> ModelBuilder:
    """y = x W^T with W [rows, 4] for each signature."""
    model = ModelBuilder("test")
    weight = StoredTensor("w", (rows, 4), FLOAT32, None, lambda tensor: tensor)
    for key in signatures:
        graph = GraphBuilder(model, key)
        x = graph.input("x", (1, 4), FLOAT32)
        unused = ops.tanh(graph, x)
        assert unused.shape == x.shape
        graph.publish({"x": x}, {"y": ops.fully_connected(graph, x, graph.stored(weight))})
    return model


def read_model(path: Path) -> Any:
    return schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)


def test_signatures_share_an_aligned_buffer_behind_the_flatbuffer(tmp_path: Path) -> None:
    path, weight = tmp_path / "m.tflite", np.arange(12, dtype=np.float32).reshape(3, 4)
    size = linear_model(3).write(path, [("other", weight), ("w", weight)])
    data = path.read_bytes()
    assert size == len(data)
    model = read_model(path)
    indices = [t.buffer for graph in model.subgraphs for t in graph.tensors if t.name == b"w"]
    assert len(indices) == 2
    assert indices[0] == indices[1]
    buffer = model.buffers[indices[0]]
    assert buffer.offset % ALIGNMENT_BYTES == 0
    np.testing.assert_array_equal(np.frombuffer(data, np.float32, 12, buffer.offset).reshape(3, 4), weight)


def test_operators_that_no_output_needs_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    linear_model(3).write(path, [("w", np.ones((3, 4), np.float32))])
    model = read_model(path)
    assert [len(graph.operators) for graph in model.subgraphs] == [1, 1]


def test_scales_found_while_encoding_reach_the_flatbuffer(tmp_path: Path) -> None:
    scales = np.ones(3, np.float32)

    def encode(tensor: np.ndarray) -> np.ndarray:
        scales[:] = [0.5, 0.25, 0.125]
        return tensor.astype(np.int8)

    model = ModelBuilder("test")
    graph = GraphBuilder(model, "a")
    x = graph.input("x", (1, 4), FLOAT32)
    weight = graph.stored(StoredTensor("w", (3, 4), INT8, scales, encode))
    graph.publish({"x": x}, {"y": ops.fully_connected(graph, x, weight)})
    model.write(tmp_path / "m.tflite", [("w", np.ones((3, 4), np.float32))])
    tensors = read_model(tmp_path / "m.tflite").subgraphs[0].tensors
    assert tensors[weight.index].quantization.scale.tolist() == [0.5, 0.25, 0.125]


def test_files_beyond_2_gib_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"must stay under 2 GiB, this one needs 2\.00 GiB; use int8"):
        linear_model(2**27).write(tmp_path / "m.tflite", [])
    assert not list(tmp_path.iterdir())


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="lacks w"):
        linear_model(3).write(tmp_path / "m.tflite", [])
    with pytest.raises(ExportError, match=r"w: must have shape \[3, 4\], got \[2, 4\]"):
        linear_model(3).write(tmp_path / "m.tflite", [("w", np.ones((2, 4), np.float32))])
    assert not list(tmp_path.iterdir())


def test_unwritable_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be written: No such file or directory"):
        linear_model(3).write(tmp_path / "absent" / "m.tflite", [])


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(tensor: np.ndarray) -> np.ndarray:
        raise OSError(28, "No space left on device")

    model = ModelBuilder("test")
    graph = GraphBuilder(model, "a")
    x = graph.input("x", (1, 4), FLOAT32)
    weight = graph.stored(StoredTensor("w", (3, 4), FLOAT32, None, fail))
    graph.publish({"x": x}, {"y": ops.fully_connected(graph, x, weight)})
    with pytest.raises(ExportError, match=r"m\.tflite: cannot be written: No space left on device"):
        model.write(tmp_path / "m.tflite", [("w", np.ones((3, 4), np.float32))])
    assert not list(tmp_path.iterdir())


def test_reader_refuses_what_attar_did_not_write(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    linear_model(3).write(path, [("w", np.ones((3, 4), np.float32))])
    with pytest.raises(ExportError, match="has no attar metadata"):
        read_stored(path)
    path.write_bytes(b"\x00" * 7)
    with pytest.raises(ExportError, match=r"m\.tflite: not a readable \.tflite file"):
        read_stored(path)
