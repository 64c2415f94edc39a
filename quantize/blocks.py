"""Encoders of ggml's block formats: round-to-nearest, as ggml's reference quantisers do it.

The layouts are drawn in `attar.engine.gguf_blocks`, which also decodes them. With step the block's scale, decoded
values differ from the weights by at most

    Q8_0, Q4_1   step / 2
    Q4_0, Q5_0   step / 2, except that values opposite in sign to the block's largest may be off by a step: codes
                 reach from -2^(b-1), which the largest takes, only to 2^(b-1) - 1

plus what rounding the scale (and Q4_1's minimum) to float16 moves: 2^-11 of the largest weight of the block.
Source: ggml `ggml-quants.c`, quantize_row_{q8_0,q4_0,q4_1,q5_0}_ref.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from attar.engine.gguf_blocks import FORMATS, Bytes, Floats, dequantize

__all__ = ["ENCODED", "check_finite", "dequantize", "quantize"]

# Values encoded at a time: bounds the temporaries to some ten megabytes whatever the tensor's size.
_CHUNK_VALUES = 1 << 20


def quantize(name: str, weights: Floats) -> Bytes:
    """Encodes rows of weights.

    Args:
      name: One of ENCODED.
      weights: float32[rows, cols], cols a multiple of the format's block.

    Returns:
      uint8[rows, row_bytes].

    Raises:
      ValueError: If the format has no encoder, the shape does not fit, or a weight is not finite or too large for
        the format.
    """
    if name not in _ENCODERS:
        raise ValueError(f"format must be one of {', '.join(_ENCODERS)}, got {name!r}")
    if weights.ndim != 2 or weights.dtype != np.float32:
        raise ValueError(f"weights must be float32 [rows, cols], got {weights.dtype} {list(weights.shape)}")
    rows, cols = weights.shape
    out = np.empty((rows, FORMATS[name].row_bytes(cols)), np.uint8)
    step = max(1, _CHUNK_VALUES // cols)
    for start in range(0, rows, step):
        part = np.ascontiguousarray(weights[start : start + step])
        check_finite(part, start)
        # Overflow to infinity is found below and refused with its own message.
        with np.errstate(over="ignore"):
            encoded = _ENCODERS[name](part.reshape(-1, FORMATS[name].block_cols))
        if encoded is None:
            largest = float(np.abs(part).max())
            raise ValueError(f"weights must fit the range of {name}, got {largest:.3g}; use F32 for this tensor")
        out[start : start + step] = encoded.reshape(len(part), -1)
    return out


def check_finite(weights: Floats, first_row: int = 0) -> None:
    """Refuses NaN and infinite weights.

    Args:
      weights: float32[rows, cols].
      first_row: Number of the first row, for the message.

    Raises:
      ValueError: Naming the first bad weight.
    """
    finite = np.isfinite(weights)
    if not finite.all():
        row, col = np.argwhere(~finite)[0]
        raise ValueError(f"weights must be finite, got {weights[row, col]} in row {first_row + row}, column {col}")


def _inverse(scales: Floats) -> Floats:
    """1 / scale, and 0 where that is not a finite number: such a block decodes to zeros."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scales
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _round_half_away(x: Floats) -> Floats:
    """C's roundf; adding 0.5 and truncating would round 0.49999997 up."""
    magnitude = np.abs(x)
    whole = np.floor(magnitude)
    rounded: Floats = np.copysign(whole + (magnitude - whole >= 0.5), x).astype(np.float32, copy=False)
    return rounded


def _halves(values: Floats) -> Bytes | None:
    """float32[blocks, 1] as the two bytes of a float16 each, or None if one overflows."""
    halves = values.astype("<f2")
    return halves.view(np.uint8) if np.isfinite(halves).all() else None


def _pack_nibbles(codes: Bytes) -> Bytes:
    """uint8[blocks, 32] of values below 16 to uint8[blocks, 16]: value i low, value i + 16 high."""
    return codes[:, :16] | (codes[:, 16:] << np.uint8(4))


def _signed_extreme(blocks: Floats) -> Floats:
    """The value of largest magnitude of each block, with its sign (the first of equals): float32[blocks, 1]."""
    where = np.abs(blocks).argmax(axis=1)[:, None]
    extreme: Floats = np.take_along_axis(blocks, where, axis=1)
    return extreme


def _codes(blocks: Floats, shift: float, largest: int) -> Bytes:
    """trunc(blocks + shift), at most `largest`; `shift` includes the 0.5 that makes it rounding."""
    codes: Bytes = np.minimum(np.trunc(blocks + np.float32(shift)), np.float32(largest)).astype(np.uint8)
    return codes


def _encode_f32(values: Floats) -> Bytes | None:
    return values.astype("<f4", copy=False).view(np.uint8)


def _encode_f16(values: Floats) -> Bytes | None:
    return _halves(values)


def _encode_bf16(values: Floats) -> Bytes | None:
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    # Nearest even: half of the dropped part, minus one where the kept part is even.
    rounded = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    halves = rounded.astype("<u2")
    overflows = (halves & np.uint16(0x7F80)) == np.uint16(0x7F80)
    return None if overflows.any() else halves.view(np.uint8)


def _encode_q8_0(blocks: Floats) -> Bytes | None:
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    head = _halves(scales)
    if head is None:
        return None
    codes = _round_half_away(blocks * _inverse(scales)).astype(np.int8)
    return np.concatenate([head, codes.view(np.uint8)], axis=1)


def _encode_q4_0(blocks: Floats) -> Bytes | None:
    scales = _signed_extreme(blocks) / np.float32(-8)
    head = _halves(scales)
    if head is None:
        return None
    return np.concatenate([head, _pack_nibbles(_codes(blocks * _inverse(scales), 8.5, 15))], axis=1)


def _encode_q4_1(blocks: Floats) -> Bytes | None:
    low = blocks.min(axis=1, keepdims=True)
    scales = (blocks.max(axis=1, keepdims=True) - low) / np.float32(15)
    head, minimums = _halves(scales), _halves(low)
    if head is None or minimums is None:
        return None
    codes = _codes((blocks - low) * _inverse(scales), 0.5, 15)
    return np.concatenate([head, minimums, _pack_nibbles(codes)], axis=1)


def _encode_q5_0(blocks: Floats) -> Bytes | None:
    scales = _signed_extreme(blocks) / np.float32(-16)
    head = _halves(scales)
    if head is None:
        return None
    codes = _codes(blocks * _inverse(scales), 16.5, 31)
    high = np.packbits(codes >> np.uint8(4), axis=1, bitorder="little")
    return np.concatenate([head, high, _pack_nibbles(codes & np.uint8(15))], axis=1)


_ENCODERS: dict[str, Callable[[Floats], Bytes | None]] = {
    "F32": _encode_f32,
    "F16": _encode_f16,
    "BF16": _encode_bf16,
    "Q8_0": _encode_q8_0,
    "Q4_0": _encode_q4_0,
    "Q4_1": _encode_q4_1,
    "Q5_0": _encode_q5_0,
}

# Formats that `quantize` writes; `dequantize` also reads the K formats.
ENCODED: tuple[str, ...] = tuple(_ENCODERS)
