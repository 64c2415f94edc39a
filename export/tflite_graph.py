"""One TFLite subgraph under construction: tensors, operators, and the constants they share with other subgraphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from attar.export.tflite_file import FLOAT32, Array, ModelBuilder, Shape, StoredTensor


@dataclass(frozen=True)
class Tensor:
    """A tensor of one subgraph: its index there, shape and schema TensorType."""

    index: int
    shape: Shape
    type: int


class GraphBuilder:
    """Collects one subgraph. Constants are added once each, however often they are used."""

    def __init__(self, model: ModelBuilder, name: str) -> None:
        self._model = model
        self._name = name
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._stored: dict[tuple[str, Shape], Tensor] = {}

    def input(self, name: str, shape: Shape, type: int) -> Tensor:
        """A tensor that the caller of the signature fills."""
        return self._add(name, shape, type)

    def constant(self, value: Array) -> Tensor:
        """A constant that is known now."""
        return self.stored(self._model.constant(value))

    def stored(self, tensor: StoredTensor) -> Tensor:
        """A constant over a buffer that other signatures may share."""
        key = (tensor.key, tensor.shape)
        if key not in self._stored:
            buffer = self._model.buffer(tensor)
            quantization = self._model.quantization(tensor)
            self._stored[key] = self._add(tensor.key, tensor.shape, tensor.type, buffer, quantization)
        return self._stored[key]

    def operator(
        self,
        builtin: int,
        inputs: Sequence[Tensor | None],
        shape: Shape,
        type: int = FLOAT32,
        options: tuple[int, Any] = (0, None),
        version: int = 1,
    ) -> Tensor:
        """Appends an operator with one output.

        Args:
          builtin: Schema BuiltinOperator.
          inputs: Operands; None is an optional one that is left out.
          shape: Shape of the output.
          options: Schema BuiltinOptions value and its options object.
          version: Version of the operator's semantics that the runtime must know.
        """
        output = self._add(f"{self._name}/{len(self._operators)}", shape, type)
        self._operators.append(
            schema.OperatorT(
                opcodeIndex=self._model.opcode(builtin, version),
                inputs=np.array([-1 if t is None else t.index for t in inputs], dtype=np.int32),
                outputs=np.array([output.index], dtype=np.int32),
                builtinOptionsType=options[0],
                builtinOptions=options[1],
            )
        )
        return output

    def publish(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Adds the subgraph to the model under a signature of its name, without operators that no output needs."""
        inputs_of = {name: tensor.index for name, tensor in inputs.items()}
        outputs_of = {name: tensor.index for name, tensor in outputs.items()}
        subgraph = schema.SubGraphT(
            tensors=self._tensors,
            inputs=np.array(list(inputs_of.values()), dtype=np.int32),
            outputs=np.array(list(outputs_of.values()), dtype=np.int32),
            operators=self._live_operators(set(outputs_of.values())),
            name=self._name,
        )
        self._model.add_subgraph(self._name, subgraph, inputs_of, outputs_of)

    def _live_operators(self, needed: set[int]) -> list[Any]:
        live = []
        for operator in reversed(self._operators):
            if operator.outputs[0] in needed:
                needed.update(operator.inputs.tolist())
                live.append(operator)
        return live[::-1]

    def _add(self, name: str, shape: Shape, type: int, buffer: int = 0, quantization: Any = None) -> Tensor:
        tensor = Tensor(len(self._tensors), shape, type)
        self._tensors.append(
            schema.TensorT(
                shape=np.array(shape, dtype=np.int32),
                type=type,
                buffer=buffer,
                name=name,
                quantization=quantization,
                hasRank=True,
            )
        )
        return tensor
