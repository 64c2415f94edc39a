"""ggml's block formats: their sizes, their layouts, and how a row of blocks becomes float32.

Every format is decoded here and nowhere else; `attar.quantize.blocks` holds the encoders. Layouts follow ggml's
`ggml-common.h` and `ggml-quants.c`; all numbers are little endian, `d` and `m` are float16:

    Q8_0  32 values, 34 bytes   d | int8 q[32]                                w = d * q
    Q4_0  32 values, 18 bytes   d | u4 q[32]                                  w = d * (q - 8)
    Q4_1  32 values, 20 bytes   d | m | u4 q[32]                              w = d * q + m
    Q5_0  32 values, 22 bytes   d | u1 h[32] | u4 q[32]                       w = d * (q + 16 h - 16)
    Q4_K 256 values, 144 bytes  d | dmin | s[12] | u4 q[256]                  w = (d * sc) * q - dmin * mn
    Q5_K 256 values, 176 bytes  d | dmin | s[12] | u1 h[256] | u4 q[256]      w = (d * sc) * (q + 16 h) - dmin * mn
    Q6_K 256 values, 210 bytes  u4 q[256] | u2 h[256] | int8 sc[16] | d       w = (d * sc) * (q + 16 h - 32)

In the 32-value formats byte i of q holds value i (low nibble) and value i + 16 (high nibble).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# Values decoded at a time: bounds the temporaries to a few megabytes whatever the tensor's size.
_CHUNK_VALUES = 1 << 20


@dataclass(frozen=True)
class BlockFormat:
    """One ggml tensor type.

    Attributes:
      name: ggml's spelling.
      number: The type number in a GGUF file.
      block_cols: Values in a block; a row's length must be a multiple.
      block_bytes: Bytes of a block.
    """

    name: str
    number: int
    block_cols: int
    block_bytes: int

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row of `cols` values.

        Raises:
          ValueError: If `cols` is not a positive multiple of the block.
        """
        if cols < 1 or cols % self.block_cols:
            raise ValueError(f"{self.name} rows must be a multiple of {self.block_cols} values, got {cols}")
        return cols // self.block_cols * self.block_bytes


FORMATS: dict[str, BlockFormat] = {
    format.name: format
    for format in (
        BlockFormat("F32", 0, 1, 4),
        BlockFormat("F16", 1, 1, 2),
        BlockFormat("Q4_0", 2, 32, 18),
        BlockFormat("Q4_1", 3, 32, 20),
        BlockFormat("Q5_0", 6, 32, 22),
        BlockFormat("Q8_0", 8, 32, 34),
        BlockFormat("Q4_K", 12, 256, 144),
        BlockFormat("Q5_K", 13, 256, 176),
        BlockFormat("Q6_K", 14, 256, 210),
        BlockFormat("BF16", 30, 1, 2),
    )
}

FORMATS_BY_NUMBER: dict[int, BlockFormat] = {format.number: format for format in FORMATS.values()}

# Types that exist and that attar does not read, so that a refusal can name them.
UNREAD_TYPES: dict[int, str] = {
    7: "Q5_1",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}


def dequantize(name: str, data: Bytes, cols: int) -> Floats:
    """Decodes rows of blocks.

    Args:
      name: A key of FORMATS.
      data: uint8[rows, row_bytes].
      cols: Values in a row.

    Returns:
      float32[rows, cols].

    Raises:
      ValueError: If the format is unknown or the bytes of a row are not those of `cols` values.
    """
    if name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {name!r}")
    row_bytes = FORMATS[name].row_bytes(cols)
    if data.ndim != 2 or data.shape[1] != row_bytes:
        raise ValueError(f"{name} rows of {cols} values must be uint8 [rows, {row_bytes}], got {data.shape}")
    out = np.empty((len(data), cols), np.float32)
    step = max(1, _CHUNK_VALUES // cols)
    for start in range(0, len(data), step):
        part = np.ascontiguousarray(data[start : start + step])
        blocks = part.reshape(-1, FORMATS[name].block_bytes)  # [blocks, block_bytes]
        out[start : start + step] = _DECODERS[name](blocks).reshape(-1, cols)
    return out


def unpack_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Scales and minimums of the eight groups of a Q4_K or Q5_K block: twelve bytes hold sixteen 6-bit numbers.

        byte j      (0..3):  scale j low 6 bits | top 2 bits of scale j + 4
        byte j + 4  (0..3):  minimum j          | top 2 bits of minimum j + 4
        byte j + 8  (0..3):  low 4 bits of scale j + 4 | low 4 bits of minimum j + 4

    Args:
      packed: uint8[blocks, 12].

    Returns:
      Scales and minimums, each uint8[blocks, 8] of values below 64.
    """
    first, second, low = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    low_bits, top_bits = np.uint8(63), np.uint8(48)  # a byte's top two bits, shifted by 2, are bits 4 and 5
    scales = np.concatenate([first & low_bits, (low & np.uint8(15)) | (first >> np.uint8(2) & top_bits)], axis=1)
    minimums = np.concatenate([second & low_bits, (low >> np.uint8(4)) | (second >> np.uint8(2) & top_bits)], axis=1)
    return scales, minimums


def _half(blocks: Bytes, start: int) -> Floats:
    """The float16 at byte `start` of each block, as float32[blocks, 1]."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """Low nibbles of each row, then its high nibbles: uint8[n, k] to uint8[n, 2k]."""
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=1)


def _decode_f32(blocks: Bytes) -> Floats:
    return blocks.view("<f4").astype(np.float32, copy=False)


def _decode_f16(blocks: Bytes) -> Floats:
    return blocks.view("<f2").astype(np.float32)


def _decode_bf16(blocks: Bytes) -> Floats:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _decode_q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _decode_q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _decode_q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _decode_q5_0(blocks: Bytes) -> Floats:
    high = np.unpackbits(blocks[:, 2:6], axis=1, bitorder="little")  # [blocks, 32]
    return _half(blocks, 0) * ((_nibbles(blocks[:, 6:]) | (high << np.uint8(4))).astype(np.float32) - 16)


def _decode_q4_k(blocks: Bytes) -> Floats:
    # Each run of 32 bytes holds two groups: the low nibbles, then the high ones.
    q = _nibbles(blocks[:, 16:].reshape(-1, 32)).reshape(-1, 8, 32)
    return _apply_group_scales(blocks, q)


def _decode_q5_k(blocks: Bytes) -> Floats:
    low = _nibbles(blocks[:, 48:].reshape(-1, 32)).reshape(-1, 8, 32)
    # Bit g of byte i is the fifth bit of value i of group g.
    high = np.unpackbits(blocks[:, 16:48], axis=1, bitorder="little").reshape(-1, 32, 8).transpose(0, 2, 1)
    return _apply_group_scales(blocks, low | (high << np.uint8(4)))


def _apply_group_scales(blocks: Bytes, q: Bytes) -> Floats:
    """(d * scale) * q - dmin * minimum, for q uint8[blocks, 8, 32]."""
    scales, minimums = unpack_scales(blocks[:, 4:16])
    d = (_half(blocks, 0) * scales.astype(np.float32))[:, :, None]  # [blocks, 8, 1]
    m = (_half(blocks, 2) * minimums.astype(np.float32))[:, :, None]
    return (d * q.astype(np.float32) - m).astype(np.float32, copy=False)


def _decode_q6_k(blocks: Bytes) -> Floats:
    # Each half of 128 values: 64 bytes of nibbles (low halves first), 32 bytes of four 2-bit high parts.
    low = _nibbles(blocks[:, :128].reshape(-1, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)  # [blocks, 2, 4, 32]
    q = (low | (high << np.uint8(4))).astype(np.float32) - np.float32(32)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)  # [blocks, 16]
    d = (_half(blocks, 208) * scales)[:, :, None]
    return (d * q.reshape(-1, 16, 16)).astype(np.float32, copy=False)


_DECODERS: dict[str, Callable[[Bytes], Floats]] = {
    "F32": _decode_f32,
    "F16": _decode_f16,
    "BF16": _decode_bf16,
    "Q8_0": _decode_q8_0,
    "Q4_0": _decode_q4_0,
    "Q4_1": _decode_q4_1,
    "Q5_0": _decode_q5_0,
    "Q4_K": _decode_q4_k,
    "Q5_K": _decode_q5_k,
    "Q6_K": _decode_q6_k,
}
