"""Decoders of ggml's block formats against the `gguf` package's, on random blocks."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from attar.engine.gguf_blocks import FORMATS, FORMATS_BY_NUMBER, UNREAD_TYPES, dequantize, unpack_scales

# Bytes at which a block holds a float16, whose random bits would be NaN.
_HALVES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def random_blocks(name: str, rows: int, cols: int) -> np.ndarray:
    """uint8[rows, row_bytes] of random codes with finite scales of both signs."""
    rng = np.random.default_rng(FORMATS[name].number)
    format = FORMATS[name]
    if name in ("F32", "F16"):
        return rng.standard_normal((rows, cols)).astype("<f4" if name == "F32" else "<f2").view(np.uint8)
    if name == "BF16":
        return (rng.standard_normal((rows, cols)).astype("<f4").view("<u4") >> 16).astype("<u2").view(np.uint8)
    blocks = rng.integers(0, 256, (rows * cols // format.block_cols, format.block_bytes), np.uint8)
    for start in _HALVES[name]:
        scales = rng.standard_normal((len(blocks), 1)).astype("<f2")
        blocks[:, start : start + 2] = scales.view(np.uint8)
    return blocks.reshape(rows, format.row_bytes(cols))


@pytest.mark.parametrize("name", list(FORMATS))
def test_decodes_as_the_gguf_package(name: str) -> None:
    data = random_blocks(name, 5, 512)
    expected = gguf.dequantize(data, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(dequantize(name, data, 512), expected)


def test_decodes_in_chunks_as_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_blocks("Q4_K", 7, 512)
    whole = dequantize("Q4_K", data, 512)
    monkeypatch.setattr("attar.engine.gguf_blocks._CHUNK_VALUES", 1024)
    np.testing.assert_array_equal(dequantize("Q4_K", data, 512), whole)


def test_type_numbers_and_sizes_are_ggmls() -> None:
    for format in FORMATS.values():
        kind = gguf.GGMLQuantizationType[format.name]
        assert (kind.value, *gguf.GGML_QUANT_SIZES[kind]) == (format.number, format.block_cols, format.block_bytes)
    for number, name in UNREAD_TYPES.items():
        assert gguf.GGMLQuantizationType(number).name == name
        assert number not in FORMATS_BY_NUMBER


def test_unpacks_six_bit_scales() -> None:
    scales, minimums = np.arange(8) * 9, 63 - np.arange(8) * 8
    packed = np.zeros(12, np.uint8)
    packed[:4] = scales[:4] | (scales[4:] >> 4 << 6)
    packed[4:8] = minimums[:4] | (minimums[4:] >> 4 << 6)
    packed[8:] = (scales[4:] & 15) | ((minimums[4:] & 15) << 4)
    found_scales, found_minimums = unpack_scales(packed[None])
    np.testing.assert_array_equal(found_scales[0], scales)
    np.testing.assert_array_equal(found_minimums[0], minimums)


@pytest.mark.parametrize(
    ("name", "shape", "cols", "message"),
    [
        ("Q9_9", (1, 34), 32, "format must be one of"),
        ("Q8_0", (1, 34), 33, "multiple of 32 values, got 33"),
        ("Q8_0", (1, 33), 32, r"uint8 \[rows, 34\]"),
        ("Q4_K", (1, 144), 0, "multiple of 256 values, got 0"),
    ],
)
def test_refuses(name: str, shape: tuple[int, int], cols: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dequantize(name, np.zeros(shape, np.uint8), cols)
