"""Encoders of ggml's block formats: byte for byte the `gguf` package's, and what they refuse."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from attar.quantize.blocks import ENCODED, dequantize, quantize


def varied_weights(rows: int = 64, cols: int = 96) -> np.ndarray:
    """Rows of widely different magnitude, with zero blocks, constants, ties of sign and values near zero."""
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((rows, cols)) * np.exp(2 * rng.standard_normal((rows, 1)))
    weights[0] = 0
    weights[1, :32] = 0
    weights[2], weights[3] = 1, -1
    weights[4] = np.rint(weights[4])
    weights[5, ::2], weights[5, 1::2] = 2, -2
    weights[6] *= 1e-6
    weights[7] *= 1e-9
    return weights.astype(np.float32)


@pytest.mark.parametrize("name", ENCODED)
def test_encodes_as_the_gguf_package(name: str) -> None:
    weights = varied_weights()
    data = quantize(name, weights)
    reference = gguf.quantize(weights, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(data, reference.view(np.uint8).reshape(data.shape))


def test_encodes_in_chunks_as_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = varied_weights(9)
    whole = quantize("Q4_0", weights)
    monkeypatch.setattr("attar.quantize.blocks._CHUNK_VALUES", 200)
    np.testing.assert_array_equal(quantize("Q4_0", weights), whole)


def test_scales_too_small_to_invert_decode_to_zeros() -> None:
    weights = np.full((1, 32), 1e-45, np.float32)
    for name in ("Q8_0", "Q4_0", "Q4_1", "Q5_0"):
        np.testing.assert_allclose(dequantize(name, quantize(name, weights), 32), 0, atol=1e-44)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ENCODED)
def test_refuses_weights_that_are_not_finite(name: str, bad: float) -> None:
    weights = varied_weights()
    weights[9, 41] = bad
    with pytest.raises(ValueError, match=r"weights must be finite, got -?(nan|inf) in row 9, column 41"):
        quantize(name, weights)


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"])
def test_refuses_weights_beyond_the_range(name: str) -> None:
    weights = varied_weights()
    weights[9, 41] = 3.4e38
    with pytest.raises(ValueError, match=rf"must fit the range of {name}, got 3.4e\+38; use F32"):
        quantize(name, weights)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("Q4_K", np.zeros((1, 256), np.float32), "format must be one of F32"),
        ("Q8_0", np.zeros((1, 33), np.float32), "multiple of 32 values, got 33"),
        ("Q8_0", np.zeros(32, np.float32), r"must be float32 \[rows, cols\], got float32 \[32\]"),
        ("Q8_0", np.zeros((1, 32)), "got float64"),
    ],
)
def test_refuses_arguments(name: str, weights: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(name, weights)
