"""TFLite operators as functions on tensors: shapes follow numpy, options are spelled out once, here.

Only operators that the CPU runtime's XNNPACK delegate takes are used on the path of the activations, so that a
decoder layer is a handful of delegated partitions around its two cache updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from attar.export.tflite_file import FLOAT32, INT8, INT32, Shape
from attar.export.tflite_graph import GraphBuilder, Tensor

_OP = schema.BuiltinOperator
_OPTIONS = schema.BuiltinOptions


def add(g: GraphBuilder, x: Tensor, y: Tensor) -> Tensor:
    return g.operator(_OP.ADD, [x, y], _broadcast(x, y), options=(_OPTIONS.AddOptions, schema.AddOptionsT()))


def sub(g: GraphBuilder, x: Tensor, y: Tensor) -> Tensor:
    return g.operator(_OP.SUB, [x, y], _broadcast(x, y), options=(_OPTIONS.SubOptions, schema.SubOptionsT()))


def mul(g: GraphBuilder, x: Tensor, y: Tensor) -> Tensor:
    return g.operator(_OP.MUL, [x, y], _broadcast(x, y), options=(_OPTIONS.MulOptions, schema.MulOptionsT()))


def minimum(g: GraphBuilder, x: Tensor, y: Tensor) -> Tensor:
    options = (_OPTIONS.MaximumMinimumOptions, schema.MaximumMinimumOptionsT())
    return g.operator(_OP.MINIMUM, [x, y], _broadcast(x, y), options=options)


def scalar(g: GraphBuilder, value: float) -> Tensor:
    """A float32 constant of shape [1], which broadcasts against anything."""
    return g.constant(np.array([value], dtype=np.float32))


def tanh(g: GraphBuilder, x: Tensor) -> Tensor:
    return g.operator(_OP.TANH, [x], x.shape)


def logistic(g: GraphBuilder, x: Tensor) -> Tensor:
    return g.operator(_OP.LOGISTIC, [x], x.shape)


def gelu_tanh(g: GraphBuilder, x: Tensor) -> Tensor:
    """GELU by its tanh approximation."""
    return g.operator(_OP.GELU, [x], x.shape, options=(_OPTIONS.GeluOptions, schema.GeluOptionsT(approximate=True)))


def rsqrt(g: GraphBuilder, x: Tensor) -> Tensor:
    return g.operator(_OP.RSQRT, [x], x.shape)


def mean_last(g: GraphBuilder, x: Tensor) -> Tensor:
    """Mean over the last axis, kept with length 1."""
    axes = g.constant(np.array([len(x.shape) - 1], dtype=np.int32))
    options = (_OPTIONS.ReducerOptions, schema.ReducerOptionsT(keepDims=True))
    return g.operator(_OP.MEAN, [x, axes], (*x.shape[:-1], 1), options=options)


def softmax(g: GraphBuilder, x: Tensor) -> Tensor:
    return g.operator(_OP.SOFTMAX, [x], x.shape, options=(_OPTIONS.SoftmaxOptions, schema.SoftmaxOptionsT(beta=1.0)))


def reshape(g: GraphBuilder, x: Tensor, shape: Shape) -> Tensor:
    options = (_OPTIONS.ReshapeOptions, schema.ReshapeOptionsT(newShape=_ints(shape)))
    return g.operator(_OP.RESHAPE, [x, g.constant(_ints(shape))], shape, x.type, options)


def transpose(g: GraphBuilder, x: Tensor, axes: Sequence[int]) -> Tensor:
    options = (_OPTIONS.TransposeOptions, schema.TransposeOptionsT())
    shape = tuple(x.shape[axis] for axis in axes)
    return g.operator(_OP.TRANSPOSE, [x, g.constant(_ints(axes))], shape, x.type, options)


def slice_from(g: GraphBuilder, x: Tensor, start: Sequence[int], size: Shape) -> Tensor:
    options = (_OPTIONS.SliceOptions, schema.SliceOptionsT())
    return g.operator(_OP.SLICE, [x, g.constant(_ints(start)), g.constant(_ints(size))], size, x.type, options)


def concat_last(g: GraphBuilder, parts: Sequence[Tensor]) -> Tensor:
    axis = len(parts[0].shape) - 1
    shape = (*parts[0].shape[:-1], sum(part.shape[-1] for part in parts))
    options = (_OPTIONS.ConcatenationOptions, schema.ConcatenationOptionsT(axis=axis))
    return g.operator(_OP.CONCATENATION, list(parts), shape, parts[0].type, options)


def tile(g: GraphBuilder, x: Tensor, repeats: Sequence[int]) -> Tensor:
    shape = tuple(size * n for size, n in zip(x.shape, repeats, strict=True))
    options = (_OPTIONS.TileOptions, schema.TileOptionsT())
    return g.operator(_OP.TILE, [x, g.constant(_ints(repeats))], shape, x.type, options)


def to_float(g: GraphBuilder, x: Tensor) -> Tensor:
    options = (_OPTIONS.CastOptions, schema.CastOptionsT(inDataType=x.type, outDataType=FLOAT32))
    return g.operator(_OP.CAST, [x], x.shape, FLOAT32, options)


def gather_rows(g: GraphBuilder, table: Tensor, indices: Tensor) -> Tensor:
    """Rows table[i] for int32 indices [T]: [T, ...]. An INT8 table's rows come dequantised to float32."""
    version = 4 if table.type == INT8 else 1
    return g.operator(_OP.EMBEDDING_LOOKUP, [indices, table], (*indices.shape, *table.shape[1:]), version=version)


def fully_connected(g: GraphBuilder, x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in] times the transpose of weight [out, in].

    An INT8 weight makes this dynamic-range quantised: the runtime rounds each row of x to 8 bits on the fly.
    """
    options = schema.FullyConnectedOptionsT(keepNumDims=True, asymmetricQuantizeInputs=False)
    shape = (*x.shape[:-1], weight.shape[0])
    return g.operator(
        _OP.FULLY_CONNECTED, [x, weight, None], shape, FLOAT32, (_OPTIONS.FullyConnectedOptions, options), 5
    )


def matmul_transposed(g: GraphBuilder, x: Tensor, y: Tensor) -> Tensor:
    """x [..., M, D] times the transpose of y [..., N, D]: [..., M, N]."""
    options = (_OPTIONS.BatchMatMulOptions, schema.BatchMatMulOptionsT(adjY=True))
    return g.operator(_OP.BATCH_MATMUL, [x, y], (*x.shape[:-1], y.shape[-2]), FLOAT32, options)


def update_slice(g: GraphBuilder, operand: Tensor, update: Tensor, start: Tensor) -> Tensor:
    """The operand with `update` written at int32 `start` (clamped by the runtime so that it fits)."""
    options = (_OPTIONS.DynamicUpdateSliceOptions, schema.DynamicUpdateSliceOptionsT())
    return g.operator(_OP.DYNAMIC_UPDATE_SLICE, [operand, update, start], operand.shape, operand.type, options)


def int_vector(g: GraphBuilder, parts: Sequence[int | Tensor]) -> Tensor:
    """An int32 vector of constants and tensors of shape [1]."""
    tensors = [p if isinstance(p, Tensor) else g.constant(np.array([p], dtype=np.int32)) for p in parts]
    options = (_OPTIONS.ConcatenationOptions, schema.ConcatenationOptionsT(axis=0))
    return g.operator(_OP.CONCATENATION, list(tensors), (len(parts),), INT32, options)


def _ints(values: Sequence[int]) -> Any:
    return np.array(values, dtype=np.int32)


def _broadcast(x: Tensor, y: Tensor) -> Shape:
    return np.broadcast_shapes(x.shape, y.shape)
