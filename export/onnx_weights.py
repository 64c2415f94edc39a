"""How each weight is stored in an ONNX file, and how it is read back as the float32 tensor it stands for.

A quantised matrix [N, K] is what com.microsoft.MatMulNBits takes, in blocks along K that share a scale:

    NAME.data    uint8 [N, blocks, block_size * bits / 8]   with 4 bits, the low nibble is the even element
    NAME.scales  float32 [N, blocks]                        value = (stored - 2^(bits - 1)) * scale

Several matrices with the same input may be stored as one; their names are then joined by "+".
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attar.export.errors import ExportError
from attar.export.onnx_graph import MICROSOFT, GraphBuilder
from attar.quantize.qtensor import quantize_int4, quantize_int8

WeightType = Literal["fp32", "int8", "int4"]
Float32 = NDArray[np.float32]

# Token tables, whose precision is chosen apart from that of the layers.
_TABLES = frozenset({"model.embed_tokens.weight", "lm_head.weight"})
# Weights quantised at a time: bounds the temporaries to some tens of megabytes whatever the tensor's size.
_CHUNK_VALUES = 1 << 21
_INT4_BLOCK_COLS = 32


@dataclass(frozen=True)
class BlockFormat:
    """Width of a stored value and number of columns that share a scale."""

    bits: Literal[4, 8]
    block_cols: int

    def num_blocks(self, cols: int) -> int:
        """Blocks in a row; the last one is filled up with zeros."""
        return -(-cols // self.block_cols)

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row's stored values, padding included."""
        return self.num_blocks(cols) * self.block_cols * self.bits // 8


def block_format(weights: WeightType, cols: int) -> BlockFormat | None:
    """The blocks that rows of `cols` weights are stored in; None is plain float32."""
    if weights == "fp32":
        return None
    if weights == "int4":
        return BlockFormat(bits=4, block_cols=_INT4_BLOCK_COLS)
    # Wider blocks spare scales (half a bit a weight at 64) but not where they would have to be padded.
    return BlockFormat(bits=8, block_cols=64 if cols % 64 == 0 else 32)


def quantize_blocks(weight: Float32, form: BlockFormat) -> tuple[NDArray[np.uint8], Float32]:
    """Rounds weight [N, K] to its stored data and scales, as drawn in the module's docstring.

    Raises:
      ValueError: If a weight is not finite.
    """
    rows, cols = weight.shape
    blocks = form.num_blocks(cols)
    data = np.empty((rows, blocks, form.block_cols * form.bits // 8), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    step = max(1, _CHUNK_VALUES // cols)
    for start in range(0, rows, step):
        part = np.pad(weight[start : start + step], ((0, 0), (0, blocks * form.block_cols - cols)))
        chunk = slice(start, start + len(part))
        if form.bits == 4:
            int4 = quantize_int4(part)
            data[chunk], scales[chunk] = int4.pack_matmul_nbits(), int4.scales
        else:
            int8 = quantize_int8(part.reshape(-1, form.block_cols))  # a row of its own for each block
            data[chunk] = (int8.values.view(np.uint8) ^ np.uint8(0x80)).reshape(data[chunk].shape)  # q + 128
            scales[chunk] = int8.scales.reshape(scales[chunk].shape)
    return data, scales


def dequantize_blocks(data: NDArray[np.uint8], scales: Float32, bits: int, cols: int) -> Float32:
    """The float32 matrix [N, cols] that stored data and scales stand for."""
    if bits == 4:
        data = np.stack([data & np.uint8(15), data >> np.uint8(4)], axis=-1).reshape(*data.shape[:2], -1)
    levels = data.astype(np.float32) - np.float32(1 << (bits - 1))
    return (levels * scales[..., None]).reshape(len(data), -1)[:, :cols]


class OnnxWeights:
    """Takes Hugging Face tensors out of a mapping one by one and puts them into a graph.

    A tensor leaves the mapping when it is stored, so that memory holds it once.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        tensors: MutableMapping[str, Float32],
        weights: WeightType,
        embedding: WeightType,
        accuracy_level: int,
    ) -> None:
        self._graph = graph
        self._tensors = tensors
        self._weights: WeightType = weights
        self._embedding: WeightType = embedding
        self._accuracy_level = accuracy_level
        self._shapes: dict[str, tuple[int, int]] = {}

    def gather(self, name: str, indices: str) -> str:
        """Rows of table [V, D] at indices [B, T]: [B, T, D]."""
        form = self._store(name, [name])
        if form is None:
            return self._graph.node("Gather", [name, indices])
        rows, cols = self._shapes[name]
        # The head's bytes once more, with the shape that this operator wants.
        flat = self._graph.alias(f"{name}.rows", [rows, form.row_bytes(cols)], f"{name}.data")
        out = self._graph.node(
            "GatherBlockQuantized",
            [flat, indices, f"{name}.scales"],
            domain=MICROSOFT,
            bits=form.bits,
            block_size=form.block_cols,
            gather_axis=0,
            quantize_axis=1,
        )
        return out if cols % form.block_cols == 0 else self._first_columns(out, cols)

    def matmul(self, names: Sequence[str], x: str, out: str) -> str:
        """x [B, T, K] times the transpose of the weights [N_i, K] put on top of each other: out [B, T, sum of N_i]."""
        name = "+".join(names)
        form = self._store(name, names)
        if form is None:
            return self._graph.node("FusedMatMul", [x, name], [out], domain=MICROSOFT, transB=1)
        rows, cols = self._shapes[name]
        inputs = [x, f"{name}.data", f"{name}.scales"]
        return self._graph.node(
            "MatMulNBits",
            inputs,
            [out],
            domain=MICROSOFT,
            N=rows,
            K=cols,
            bits=form.bits,
            block_size=form.block_cols,
            accuracy_level=self._accuracy_level,
        )

    def norm(self, name: str, plus_one: bool) -> str:
        """The factor of a norm, 1-D; Gemma's 1 + w is added up here."""
        weight = self._take(name)
        return self._graph.constant(name, weight + np.float32(1) if plus_one else weight)

    def _first_columns(self, x: str, cols: int) -> str:
        """x [B, T, padded] without the padding of its last block: [B, T, cols]."""
        bounds = [self._graph.constant(f"columns_{bound}", np.array([bound], np.int64)) for bound in (0, cols, 2)]
        return self._graph.node("Slice", [x, *bounds])

    def _store(self, name: str, parts: Sequence[str]) -> BlockFormat | None:
        """Puts matrices with equal K into the graph as one called `name`, unless it is there, and says how."""
        if name not in self._shapes:
            weight = np.concatenate([self._take(part) for part in parts])  # [sum of N_i, K]
            self._shapes[name] = (weight.shape[0], weight.shape[1])
            self._add(name, weight)
        return self._format_of(name)

    def _add(self, name: str, weight: Float32) -> None:
        form = self._format_of(name)
        if form is None:
            self._graph.constant(name, weight)
            return
        data, scales = quantize_blocks(weight, form)
        self._graph.constant(f"{name}.data", data)
        self._graph.constant(f"{name}.scales", scales)

    def _format_of(self, name: str) -> BlockFormat | None:
        return block_format(self._embedding if name in _TABLES else self._weights, self._shapes[name][1])

    def _take(self, name: str) -> Float32:
        weight = self._tensors.pop(name)
        if not np.isfinite(weight.sum(dtype=np.float64)):
            raise ExportError(f"{name} holds NaN or infinity; export a checkpoint from before training diverged")
        return weight
