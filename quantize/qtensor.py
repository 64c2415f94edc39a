"""Quantised weights as ONNX and TFLite store them: int8 per output row, int4 per block of 32 columns.

Both are symmetric: w = scale * q, zero point 0 (stored as 8 where nibbles are unsigned). Scales are float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attar.engine.gguf_blocks import Bytes, Floats
from attar.quantize.blocks import check_finite

BLOCK_COLS = 32
_INT4_ZERO = 8

# Smallest scale written, the smallest normal float32: runtimes refuse a scale of 0, which rows of zeros would have.
_SMALLEST_SCALE = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Int8Tensor:
    """w[n, k] = scales[n] * values[n, k].

    Attributes:
      values: int8[N, K], from -127 to 127.
      scales: float32[N].
    """

    values: npt.NDArray[np.int8]
    scales: Floats

    def dequantize(self) -> Floats:
        """float32[N, K]."""
        return self.values.astype(np.float32) * self.scales[:, None]

    @property
    def size_bytes(self) -> int:
        """Bytes of values and scales."""
        return self.values.nbytes + self.scales.nbytes


@dataclass(frozen=True)
class Int4Tensor:
    """w[n, k] = scales[n, k // 32] * values[n, k].

    Attributes:
      values: int8[N, K], from -8 to 7, one code a byte; `pack_*` give the stored layouts.
      scales: float32[N, K / 32].
    """

    values: npt.NDArray[np.int8]
    scales: Floats

    def dequantize(self) -> Floats:
        """float32[N, K]."""
        blocks = self.values.reshape(*self.scales.shape, BLOCK_COLS).astype(np.float32)
        return (blocks * self.scales[:, :, None]).reshape(self.values.shape)

    def pack_matmul_nbits(self) -> Bytes:
        """uint8[N, K / 32, 16] for ONNX MatMulNBits: low nibble the even element, codes shifted by the zero point 8.

        References:
          onnxruntime `docs/ContribOperators.md`, com.microsoft.MatMulNBits.
        """
        return _pack_pairs((self.values + np.int8(_INT4_ZERO)).view(np.uint8)).reshape(*self.scales.shape, 16)

    def pack_signed(self) -> Bytes:
        """uint8[N, K / 2] of two's-complement nibbles for TFLite INT4: low nibble the even element."""
        return _pack_pairs(self.values.view(np.uint8) & np.uint8(15))

    @property
    def size_bytes(self) -> int:
        """Bytes of packed values and float32 scales."""
        return self.values.size // 2 + self.scales.nbytes


def unpack_matmul_nbits(packed: Bytes, scales: Floats) -> Int4Tensor:
    """The inverse of `Int4Tensor.pack_matmul_nbits`.

    Args:
      packed: uint8[N, K / 32, 16].
      scales: float32[N, K / 32].
    """
    codes = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)  # [N, K / 32, 16, 2]
    values = codes.view(np.int8) - np.int8(_INT4_ZERO)
    return Int4Tensor(values.reshape(len(packed), -1), scales)


def quantize_int8(weights: Floats) -> Int8Tensor:
    """Symmetric int8 with one scale per output row; |w - w'| <= scale / 2.

    Args:
      weights: float32[N, K].

    Raises:
      ValueError: If a weight is not finite.
    """
    check_finite(weights)
    scales = _scales(np.abs(weights).max(axis=1), 127)
    values = np.rint(weights / scales[:, None]).astype(np.int8)
    return Int8Tensor(values, scales)


def quantize_int4(weights: Floats) -> Int4Tensor:
    """Symmetric int4 in blocks of 32 columns.

    The largest magnitude of a block takes the code -8 or, where that serves the block better, 7: both scales are
    tried and the one with the smaller squared error is kept.

    Args:
      weights: float32[N, K], K a multiple of 32.

    Raises:
      ValueError: If K is not a multiple of 32 or a weight is not finite.
    """
    rows, cols = weights.shape
    if cols % BLOCK_COLS:
        raise ValueError(f"int4 rows must be a multiple of {BLOCK_COLS} values, got {cols}")
    check_finite(weights)
    blocks = weights.reshape(-1, BLOCK_COLS)
    largest = np.abs(blocks).max(axis=1)
    wide_values, wide_scales, wide_error = _round_int4(blocks, _scales(largest, 8))
    values, scales, error = _round_int4(blocks, _scales(largest, 7))
    better = wide_error < error
    values[better], scales[better] = wide_values[better], wide_scales[better]
    return Int4Tensor(values.reshape(rows, cols), scales.reshape(rows, cols // BLOCK_COLS))


def _scales(largest: Floats, levels: int) -> Floats:
    scales: Floats = np.maximum(largest / np.float32(levels), _SMALLEST_SCALE).astype(np.float32)
    return scales


def _round_int4(blocks: Floats, scales: Floats) -> tuple[npt.NDArray[np.int8], Floats, Floats]:
    """Codes int8[blocks, 32], scales [blocks] and squared errors [blocks]."""
    codes = np.clip(np.rint(blocks / scales[:, None]), -8, 7)
    error = np.square(codes * scales[:, None] - blocks).sum(axis=1)
    return codes.astype(np.int8), scales, error


def _pack_pairs(codes: Bytes) -> Bytes:
    """uint8[N, K] of nibbles to uint8[N, K / 2], even elements low."""
    return codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))
