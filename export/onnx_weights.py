"""How each weight is stored in an ONNX file, and how it is read back as the float32 tensor it stands for."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attar.export.onnx_graph import MICROSOFT, GraphBuilder

WeightType = Literal["fp32", "int8", "int4"]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class BlockFormat:
    """Symmetric blocks of MatMulNBits: value = (stored - 2^(bits - 1)) * scale of its block.

    Stored values are unsigned; with 4 bits the low nibble is the even element.
    """

    bits: Literal[4, 8]
    block_size: int

    @property
    def zero_point(self) -> int:
        return 1 << (self.bits - 1)


BLOCK_FORMATS: dict[WeightType, BlockFormat | None] = {
    "fp32": None,
    "int8": BlockFormat(bits=8, block_size=32),
    "int4": BlockFormat(bits=4, block_size=32),
}


def quantize_blocks(weight: Float32, form: BlockFormat) -> tuple[NDArray[np.uint8], Float32]:
    """Rounds weight [N, K] to data uint8 [N, blocks, block_size * bits / 8] and scales float32 [N, blocks].

    A last block that K does not fill is padded with zeros, which MatMulNBits ignores.
    """
    rows, cols = weight.shape
    blocks = -(-cols // form.block_size)
    padded = np.zeros((rows, blocks * form.block_size), np.float32)
    padded[:, :cols] = weight
    grouped = padded.reshape(rows, blocks, form.block_size)
    scales, levels = _round_blocks(grouped, form)
    stored = (levels + form.zero_point).astype(np.uint8)  # [N, blocks, block_size]
    if form.bits == 4:
        stored = stored[..., 0::2] | (stored[..., 1::2] << 4)
    return stored, scales


def dequantize_blocks(data: NDArray[np.uint8], scales: Float32, form: BlockFormat, cols: int) -> Float32:
    """The inverse of `quantize_blocks`: float32 [N, cols]."""
    if form.bits == 4:
        data = np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)
    levels = data.astype(np.float32) - form.zero_point
    return (levels * scales[..., None]).reshape(data.shape[0], -1)[:, :cols]


def _round_blocks(grouped: Float32, form: BlockFormat) -> tuple[Float32, Float32]:
    """Scales [N, blocks] and integer levels [N, blocks, block_size].

    The element of largest magnitude, with its sign, maps to the most negative level, which has no positive
    counterpart: so all 2^bits levels are in use (as in GGUF's Q4_0).
    """
    largest = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=-1, keepdims=True), axis=-1)
    scales = (largest / -form.zero_point).astype(np.float32)  # [N, blocks, 1]
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
    levels = np.clip(np.rint(grouped * inverse), -form.zero_point, form.zero_point - 1)
    return scales[..., 0], levels


class OnnxWeights:
    """Takes Hugging Face tensors out of a mapping one by one and puts them into a graph.

    Initializers keep the tensor's name; a quantised one is split into `NAME.data` and `NAME.scales`. A tensor leaves
    the mapping when it is stored, so that memory holds it once.
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
        self._weights = BLOCK_FORMATS[weights]
        self._embedding = BLOCK_FORMATS[embedding]
        self._accuracy_level = accuracy_level
        self._shapes: dict[str, tuple[int, int]] = {}

    def gather(self, name: str, indices: str) -> str:
        """Rows of table [V, D] at indices [B, T]: [B, T, D]."""
        form = self._store(name)
        if form is None:
            return self._graph.node("Gather", [name, indices])
        rows, cols = self._shapes[name]
        blocks = -(-cols // form.block_size)
        # The head's bytes once more, with the shape that this operator wants.
        flat = self._graph.alias(f"{name}.rows", [rows, blocks * form.block_size * form.bits // 8], f"{name}.data")
        inputs = [flat, indices, f"{name}.scales"]
        return self._graph.node(
            "GatherBlockQuantized",
            inputs,
            domain=MICROSOFT,
            bits=form.bits,
            block_size=form.block_size,
            gather_axis=0,
            quantize_axis=1,
        )

    def matmul(self, name: str, x: str) -> str:
        """x [B, T, K] times the transpose of the weight [N, K]: [B, T, N]."""
        form = self._store(name)
        if form is None:
            return self._graph.node("FusedMatMul", [x, name], domain=MICROSOFT, transB=1)
        rows, cols = self._shapes[name]
        return self._graph.node(
            "MatMulNBits",
            [x, f"{name}.data", f"{name}.scales"],
            domain=MICROSOFT,
            N=rows,
            K=cols,
            bits=form.bits,
            block_size=form.block_size,
            accuracy_level=self._accuracy_level,
        )

    def norm(self, name: str, plus_one: bool) -> str:
        """The factor of a norm, 1-D; Gemma's 1 + w is added up here."""
        weight = self._tensors.pop(name)
        return self._graph.constant(name, weight + np.float32(1) if plus_one else weight)

    def _store(self, name: str) -> BlockFormat | None:
        """Puts a matrix into the graph unless it is there, and says in which blocks (None: float32)."""
        form = self._embedding if name in ("model.embed_tokens.weight", "lm_head.weight") else self._weights
        if name in self._shapes:
            return form
        weight = self._tensors.pop(name)
        self._shapes[name] = (weight.shape[0], weight.shape[1])
        if form is None:
            self._graph.constant(name, weight)
        else:
            data, scales = quantize_blocks(weight, form)
            self._graph.constant(f"{name}.data", data)
            self._graph.constant(f"{name}.scales", scales)
        return form
