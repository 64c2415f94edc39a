"""The C decoder of every block format against the ``gguf`` package's, an independent implementation."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

COLS = 1024
# The block formats and the offsets of their f16 fields, whose random bits must be made finite.
HALVES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


@pytest.fixture
def quants_library(native_build: Callable[..., Path]) -> ctypes.CDLL:
    library = ctypes.CDLL(str(native_build("attar_quants") / "libattar_quants.so"))
    library.attar_dequantize_row.argtypes = [ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64]
    library.attar_dequantize_row.restype = None
    library.attar_row_bytes.argtypes = [ctypes.c_uint32, ctypes.c_uint64]
    library.attar_row_bytes.restype = ctypes.c_uint64
    library.attar_f16_to_f32.argtypes = [ctypes.c_uint16]
    library.attar_f16_to_f32.restype = ctypes.c_float
    library.attar_f32_to_f16.argtypes = [ctypes.c_float]
    library.attar_f32_to_f16.restype = ctypes.c_uint16
    return library


@pytest.mark.parametrize("name", HALVES)
def test_rows_decode_as_gguf_does(quants_library: ctypes.CDLL, name: str) -> None:
    kind = GGMLQuantizationType[name]
    block_cols, block_bytes = GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (COLS // block_cols, block_bytes), dtype=np.uint8)
    for at in HALVES[name]:
        scales = random.normal(size=len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    decoded = np.empty(COLS, np.float32)
    quants_library.attar_dequantize_row(int(kind), blocks.ctypes.data, decoded.ctypes.data, COLS)
    np.testing.assert_array_equal(decoded, quants.dequantize(blocks.reshape(-1), kind).reshape(-1))
    assert quants_library.attar_row_bytes(int(kind), COLS) == blocks.size
    assert quants_library.attar_row_bytes(int(kind), COLS + 1) == 0


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_float_rows_decode_as_gguf_does(quants_library: ctypes.CDLL, name: str) -> None:
    kind = GGMLQuantizationType[name]
    values = np.random.default_rng(1).normal(size=COLS).astype(np.float32)
    row = quants.quantize(values, kind)
    decoded = np.empty(COLS, np.float32)
    quants_library.attar_dequantize_row(int(kind), row.ctypes.data, decoded.ctypes.data, COLS)
    np.testing.assert_array_equal(decoded, quants.dequantize(row, kind).astype(np.float32).reshape(-1))


def test_every_half_float_survives_conversion_as_in_numpy(quants_library: ctypes.CDLL) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    expected = bits.view(np.float16).astype(np.float32)
    decoded = np.array([quants_library.attar_f16_to_f32(int(b)) for b in bits], np.float32)
    np.testing.assert_array_equal(decoded, expected)
    numbers = np.flatnonzero(~np.isnan(expected))
    assert all(quants_library.attar_f32_to_f16(float(expected[i])) == bits[i] for i in numbers)


def test_floats_round_to_half_as_in_numpy(quants_library: ctypes.CDLL) -> None:
    random = np.random.default_rng(2)
    values = np.ldexp(random.uniform(-1, 1, 20000), random.integers(-28, 18, 20000)).astype(np.float32)
    with np.errstate(over="ignore"):  # beyond 65504 both give infinity
        expected = values.astype(np.float16).view(np.uint16)
    rounded = [quants_library.attar_f32_to_f16(float(v)) for v in values]
    np.testing.assert_array_equal(np.array(rounded, np.uint16), expected)


def test_unknown_types_have_no_row(quants_library: ctypes.CDLL) -> None:
    assert quants_library.attar_row_bytes(4, 32) == 0
    assert quants_library.attar_row_bytes(1000, 32) == 0
    assert quants_library.attar_row_bytes(8, 0) == 0
