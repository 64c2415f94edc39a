"""GGUF and its block formats under Hypothesis: stated error bounds, round trips, and files nobody should trust."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from attar.engine.gguf_blocks import FORMATS
from attar.engine.gguf_file import GgufError, read_gguf
from attar.engine.gguf_names import gguf_names, hf_shapes, interleave_rope_rows, split_rope_rows
from attar.engine.gguf_reader import config_from_gguf, tensors_from_gguf
from attar.engine.presets import PRESETS
from attar.export.gguf_format import TensorEntry, write_gguf
from attar.export.gguf_metadata import architecture_metadata
from attar.quantize.blocks import ENCODED, dequantize, quantize
from attar.quantize.qtensor import quantize_int4, quantize_int8, unpack_matmul_nbits

# Rounding to float16: half a unit in 11 bits, or half of the smallest subnormal.
_HALF_ROUNDING, _HALF_TINY = 2.0**-11, 2.0**-25


def weights(rows: int = 2, cols: int = 64) -> st.SearchStrategy[np.ndarray]:
    elements = st.floats(-1e4, 1e4, width=32)
    return hnp.arrays(np.float32, (rows, cols), elements=elements)


def error_bound(name: str, blocks: np.ndarray) -> np.ndarray:
    """The bound that `quantize.blocks` states for each value of blocks [n, 32]."""
    largest = np.abs(blocks).max(axis=1, keepdims=True).astype(np.float64)
    levels = {"Q8_0": 127, "Q4_0": 8, "Q5_0": 16, "Q4_1": 15}[name]
    if name == "Q4_1":
        low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
        step = (high.astype(np.float64) - low) / levels
        rounding = _HALF_ROUNDING * (levels * step + np.abs(low)) + (levels + 1) * _HALF_TINY
        return step / 2 + rounding + 1e-6 * largest
    step = largest / levels
    signed = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    opposite = (np.sign(blocks) == -np.sign(signed)) & (name != "Q8_0")
    return step * np.where(opposite, 1.0, 0.5) + _HALF_ROUNDING * largest + levels * _HALF_TINY + 1e-6 * largest


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0"])
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_rounding_stays_within_the_stated_bound(name: str, data: st.DataObject) -> None:
    w = data.draw(weights())
    decoded = dequantize(name, quantize(name, w), 64)
    blocks = w.reshape(-1, 32)
    assert (np.abs(decoded.reshape(-1, 32).astype(np.float64) - blocks) <= error_bound(name, blocks)).all()


@given(w=weights())
@settings(deadline=None, max_examples=60)
def test_floats_round_to_their_precision(w: np.ndarray) -> None:
    np.testing.assert_array_equal(dequantize("F32", quantize("F32", w), 64), w)
    np.testing.assert_array_equal(dequantize("F16", quantize("F16", w), 64), w.astype(np.float16).astype(np.float32))
    bf16 = dequantize("BF16", quantize("BF16", w), 64)
    assert (np.abs(bf16 - w) <= np.abs(w) * 2.0**-8 + 2.0**-133).all()


@given(w=weights())
@settings(deadline=None, max_examples=60)
def test_int8_and_int4_stay_within_their_steps(w: np.ndarray) -> None:
    rows, blocks = quantize_int8(w), quantize_int4(w)
    assert (np.abs(rows.dequantize() - w) <= rows.scales[:, None] * 0.5001).all()
    assert (np.abs(blocks.dequantize() - w) <= np.repeat(blocks.scales, 32, axis=1) * 1.0001).all()
    np.testing.assert_array_equal(unpack_matmul_nbits(blocks.pack_matmul_nbits(), blocks.scales).values, blocks.values)


@given(heads=st.integers(1, 4), half=st.integers(1, 5), cols=st.integers(1, 3))
def test_row_orders_are_inverse(heads: int, half: int, cols: int) -> None:
    rows = np.arange(heads * half * 2 * cols).reshape(-1, cols)
    np.testing.assert_array_equal(split_rope_rows(interleave_rope_rows(rows, heads), heads), rows)
    np.testing.assert_array_equal(interleave_rope_rows(split_rope_rows(rows, heads), heads), rows)


_TEXTS = st.binary(max_size=12).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(width=32, allow_nan=False),
    _TEXTS,
    st.lists(_TEXTS, min_size=1, max_size=4),
    hnp.arrays(st.sampled_from([np.uint8, np.int16, np.int32, np.float32, np.uint64, np.float64, np.bool_]), 3),
)


@given(
    metadata=st.dictionaries(st.text("abc.", min_size=1, max_size=8), _VALUES, max_size=5),
    shapes=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), max_size=4),
    kind=st.sampled_from(ENCODED),
)
@settings(deadline=None, max_examples=60)
def test_what_is_written_is_read(metadata: dict[str, Any], shapes: list[list[int]], kind: str) -> None:
    block = FORMATS[kind].block_cols
    entries = [TensorEntry(f"t{i}", (*shape[:-1], shape[-1] * block), kind) for i, shape in enumerate(shapes)]
    rng = np.random.default_rng(0)
    tensors = {entry.name: rng.integers(0, 256, entry.size_bytes, np.uint8) for entry in entries}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.gguf")
        write_gguf(path, metadata, entries, tensors.items())
        file = read_gguf(path)
        assert list(file.metadata) == list(metadata)
        for key, value in metadata.items():
            np.testing.assert_array_equal(file.metadata[key], value)
        for entry in entries:
            assert file.tensors[entry.name].shape == entry.shape
            np.testing.assert_array_equal(file.raw(entry.name).reshape(-1), tensors[entry.name])


def _small_model() -> bytes:
    config = PRESETS["tiny-gemma3"].replace(
        vocab_size=8,
        hidden_size=4,
        intermediate_size=4,
        head_dim=4,
        num_hidden_layers=1,
        layer_types=("full_attention",),
    )
    entries = [TensorEntry(g, tuple(s), "F32") for g, s in _small_shapes(config).items()]
    tokens = {"general.architecture": "gemma3", "tokenizer.ggml.tokens": list("abcdefgh"), "scores": [0.5] * 8}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.gguf")
        data = ((entry.name, np.zeros(entry.size_bytes, np.uint8)) for entry in entries)
        write_gguf(path, {**tokens, **architecture_metadata(config)}, entries, data)
        return path.read_bytes()


def _small_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    shapes = hf_shapes(config)
    return {gguf_name: shapes[hf_name] for hf_name, gguf_name in gguf_names(config).items()}


_MODEL = _small_model()


@given(
    edits=st.lists(st.tuples(st.integers(0, len(_MODEL) - 1), st.integers(0, 255)), max_size=6),
    length=st.one_of(st.just(len(_MODEL)), st.integers(0, len(_MODEL))),
)
@settings(deadline=2000, max_examples=400)
def test_a_damaged_file_is_read_or_refused(edits: list[tuple[int, int]], length: int) -> None:
    """Nothing but GgufError may come out, and soon: no other exception, no hang, no huge allocation."""
    content = bytearray(_MODEL)
    for position, value in edits:
        content[position] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.gguf")
        path.write_bytes(content[:length])
        with contextlib.suppress(GgufError):
            file = read_gguf(path)
            tensors = tensors_from_gguf(file, config_from_gguf(file))
            assert sum(tensor.nbytes for tensor in tensors.values()) <= len(_MODEL)


def test_the_undamaged_file_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(_MODEL)
    assert len(tensors_from_gguf(read_gguf(tmp_path / "m.gguf"))) == 15
