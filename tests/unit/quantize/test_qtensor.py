"""int8 per row and int4 per block: bounds, layouts and edge cases."""

from __future__ import annotations

import numpy as np
import pytest

from attar.quantize.qtensor import Int4Tensor, quantize_int4, quantize_int8, unpack_matmul_nbits


def weights(rows: int = 12, cols: int = 96) -> np.ndarray:
    rng = np.random.default_rng(5)
    return (rng.standard_normal((rows, cols)) * np.exp(rng.standard_normal((rows, 1)))).astype(np.float32)


def test_int8_is_within_half_a_step() -> None:
    w = weights()
    q = quantize_int8(w)
    np.testing.assert_allclose(q.scales, np.abs(w).max(axis=1) / 127, rtol=1e-6)
    assert (np.abs(q.dequantize() - w) <= q.scales[:, None] * 0.5001).all()
    assert np.abs(q.values.astype(np.int32)).max() == 127
    assert q.size_bytes == w.size + 4 * len(w)


def test_int4_is_within_a_step_and_keeps_the_better_scale() -> None:
    w = weights()
    q = quantize_int4(w)
    steps = np.repeat(q.scales, 32, axis=1)
    assert (np.abs(q.dequantize() - w) <= steps * 1.0001).all()
    largest = np.abs(w.reshape(12, 3, 32)).max(axis=2)
    levels = np.rint(largest / q.scales)
    assert set(levels.ravel()) == {7, 8}
    for level in (7, 8):
        scales = np.repeat(largest / level, 32, axis=1)
        plain = np.clip(np.rint(w / scales), -8, 7) * scales
        plain_error = np.square(plain - w).reshape(12, 3, 32).sum(axis=2)
        assert (np.square(q.dequantize() - w).reshape(12, 3, 32).sum(axis=2) <= plain_error * 1.0001).all()


def test_zero_rows_have_a_usable_scale() -> None:
    zeros = np.zeros((2, 64), np.float32)
    for q in (quantize_int8(zeros), quantize_int4(zeros)):
        assert (q.scales > 0).all()
        assert not q.dequantize().any()


def test_small_weights_keep_their_levels() -> None:
    w = np.linspace(-1e-4, 1e-4, 64, dtype=np.float32).reshape(1, 64)
    assert len(np.unique(quantize_int8(w).values)) == 64
    assert len(np.unique(quantize_int4(w).values)) > 7


def test_layouts() -> None:
    values = (np.arange(64) % 16 - 8).astype(np.int8).reshape(1, 64)
    q = Int4Tensor(values, np.ones((1, 2), np.float32))
    nbits = q.pack_matmul_nbits()
    assert nbits.shape == (1, 2, 16)
    # Elements 0 and 1 are codes 0 and 1 above the zero point: low nibble even.
    assert list(nbits[0, 0, :3]) == [0x10, 0x32, 0x54]
    signed = q.pack_signed()
    assert signed.shape == (1, 32)
    assert list(signed[0, :5]) == [0x98, 0xBA, 0xDC, 0xFE, 0x10]
    back = unpack_matmul_nbits(nbits, q.scales)
    np.testing.assert_array_equal(back.values, values)
    assert q.size_bytes == 32 + 8


def test_refuses() -> None:
    with pytest.raises(ValueError, match="multiple of 32 values, got 33"):
        quantize_int4(np.zeros((1, 33), np.float32))
    bad = weights()
    bad[3, 7] = np.nan
    for function in (quantize_int8, quantize_int4):
        with pytest.raises(ValueError, match="must be finite, got nan in row 3, column 7"):
            function(bad)
