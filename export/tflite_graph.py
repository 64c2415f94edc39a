"""TFLite files built tensor by tensor and streamed to disk, without a converter.

A TFLite file is a flatbuffer (schema `Model`): buffers, and one subgraph per signature. Weights are not put inside
the flatbuffer but after it, as the schema's `Buffer.offset` and `Buffer.size` allow:

    | flatbuffer "TFL3" | pad | buffer 1 | pad | buffer 2 | ...          every buffer starts at a multiple of 64 bytes

That keeps them out of memory while the file is written, aligned for SIMD loads from a memory map (flatbuffers'
Python builder ignores `force_align`), and lets all signatures name the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from attar.export.errors import ExportError
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]

ALIGNMENT_BYTES = 64
MAX_FILE_BYTES = 2**31 - 1  # file offsets are signed 32-bit in runtimes of 32-bit phones

FLOAT32: int = schema.TensorType.FLOAT32
INT32: int = schema.TensorType.INT32
INT8: int = schema.TensorType.INT8
_TYPE_OF_DTYPE = {np.dtype(np.float32): FLOAT32, np.dtype(np.int32): INT32, np.dtype(np.int8): INT8}


@dataclass(frozen=True)
class Tensor:
    """A tensor of one subgraph: its index there, shape and schema TensorType."""

    index: int
    shape: Shape
    type: int


@dataclass(frozen=True)
class StoredWeight:
    """A constant whose bytes are made when the file is written.

    Attributes:
      key: Name under which all signatures share the bytes.
      type: Schema TensorType of the elements.
      scales: Dequantisation factors along axis 0, float32 [shape[0]]; None for float weights.
      produce: Returns the elements, of `shape`; called once per file written.
    """

    key: str
    shape: Shape
    type: int
    scales: NDArray[np.float32] | None
    produce: Callable[[], Array]

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * (1 if self.type == INT8 else 4)


@dataclass
class ModelBuilder:
    """A TFLite model under construction. Buffer 0 is the empty buffer that non-constant tensors name."""

    description: str
    _stored: list[StoredWeight] = field(default_factory=list)
    _buffer_of_key: dict[str, int] = field(default_factory=dict)
    _opcodes: list[tuple[int, int]] = field(default_factory=list)
    _subgraphs: list[Any] = field(default_factory=list)
    _signatures: list[Any] = field(default_factory=list)
    _metadata: list[Any] = field(default_factory=list)

    def buffer(self, weight: StoredWeight) -> int:
        """Index of the buffer that holds the weight's bytes; the same key gives the same buffer."""
        if weight.key not in self._buffer_of_key:
            self._stored.append(weight)
            self._buffer_of_key[weight.key] = len(self._stored)
        return self._buffer_of_key[weight.key]

    def opcode(self, builtin: int, version: int) -> int:
        """Index of an operator code."""
        if (builtin, version) not in self._opcodes:
            self._opcodes.append((builtin, version))
        return self._opcodes.index((builtin, version))

    def add_metadata(self, name: str, content: Mapping[str, Any]) -> None:
        """Stores a JSON object in the model's metadata."""
        data = np.frombuffer(json.dumps(content, sort_keys=True).encode(), dtype=np.int8)
        weight = StoredWeight(f"metadata:{name}", data.shape, INT8, None, lambda: data)
        self._metadata.append(schema.MetadataT(name=name, buffer=self.buffer(weight)))

    def add_signature(
        self, key: str, graph: GraphBuilder, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
    ) -> None:
        """Closes a graph and publishes it under a signature key."""
        index = len(self._subgraphs)
        self._subgraphs.append(graph.finish(inputs.values(), outputs.values()))
        self._signatures.append(
            schema.SignatureDefT(
                inputs=[schema.TensorMapT(name=n, tensorIndex=t.index) for n, t in inputs.items()],
                outputs=[schema.TensorMapT(name=n, tensorIndex=t.index) for n, t in outputs.items()],
                signatureKey=key,
                subgraphIndex=index,
            )
        )

    def write(self, path: Path) -> int:
        """Writes the file under a temporary name, renames it, and returns its size in bytes.

        Raises:
          ExportError: If the file would exceed what TFLite runtimes map, or cannot be written.
        """
        size_bytes = sum(w.size_bytes + ALIGNMENT_BYTES for w in self._stored)
        if size_bytes > MAX_FILE_BYTES:
            raise ExportError(
                f"{path}: a .tflite file must stay under 2 GiB, this one needs {size_bytes / 2**30:.2f} GiB; "
                "use int8 weights, or export GGUF"
            )
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                self._write_to(file)
                size_bytes = file.tell()
            os.replace(temporary, path)
        except OSError as error:
            raise ExportError(f"{path}: cannot write: {error.strerror or error}") from error
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
        return size_bytes

    def _write_to(self, file: BinaryIO) -> None:
        # Offsets count from the start of the file, so the flatbuffer is packed twice: once with stand-ins of the
        # same width to learn its length, then with the real offsets.
        length = len(self._pack([1] * len(self._stored)))
        offsets, end = [], length
        for weight in self._stored:
            offsets.append(_align(end))
            end = offsets[-1] + weight.size_bytes
        header = self._pack(offsets)
        if len(header) != length:
            raise AssertionError(f"flatbuffer length must not depend on offsets, got {length} and {len(header)}")
        file.write(header)
        for weight, offset in zip(self._stored, offsets, strict=True):
            file.write(b"\0" * (offset - file.tell()))
            file.write(np.ascontiguousarray(weight.produce()).data)

    def _pack(self, offsets: Sequence[int]) -> bytearray:
        buffers = [schema.BufferT()]
        buffers += [
            schema.BufferT(offset=offset, size=weight.size_bytes)
            for weight, offset in zip(self._stored, offsets, strict=True)
        ]
        # Codes beyond 126 do not fit the old 8-bit field, which then holds the escape value 127.
        codes = [
            schema.OperatorCodeT(deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=version)
            for code, version in self._opcodes
        ]
        model = schema.ModelT(
            version=3,
            operatorCodes=codes,
            subgraphs=self._subgraphs,
            description=self.description,
            buffers=buffers,
            metadata=self._metadata,
            signatureDefs=self._signatures,
        )
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        packed: bytearray = builder.Output()
        return packed


class GraphBuilder:
    """One subgraph under construction. Constants and weights are added once each, however often they are used."""

    def __init__(self, model: ModelBuilder, name: str) -> None:
        self._model = model
        self._name = name
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._constants: dict[tuple[str, Shape], Tensor] = {}

    def input(self, name: str, shape: Shape, type: int) -> Tensor:
        """A tensor that the caller of the signature fills."""
        return self._add(name, shape, type)

    def constant(self, value: Array) -> Tensor:
        """A small constant, stored once per distinct content."""
        value = np.ascontiguousarray(value)
        key = f"constant:{value.dtype}:{hashlib.sha256(value.tobytes()).hexdigest()}"
        return self.weight(StoredWeight(key, value.shape, _TYPE_OF_DTYPE[value.dtype], None, lambda: value))

    def weight(self, weight: StoredWeight) -> Tensor:
        """A constant tensor over a buffer that other signatures may share."""
        found = self._constants.get((weight.key, weight.shape))
        if found is None:
            buffer = self._model.buffer(weight)
            found = self._add(weight.key, weight.shape, weight.type, buffer, _quantization(weight.scales))
            self._constants[weight.key, weight.shape] = found
        return found

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
          inputs: Operands; None is an absent optional one.
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

    def finish(self, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> Any:
        """The schema's SubGraph, without operators that no output depends on."""
        results = np.array([t.index for t in outputs], dtype=np.int32)
        return schema.SubGraphT(
            tensors=self._tensors,
            inputs=np.array([t.index for t in inputs], dtype=np.int32),
            outputs=results,
            operators=self._live_operators(set(results.tolist())),
            name=self._name,
        )

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


def _quantization(scales: NDArray[np.float32] | None) -> Any:
    """Symmetric quantisation along axis 0."""
    if scales is None:
        return None
    return schema.QuantizationParametersT(
        scale=scales, zeroPoint=np.zeros(len(scales), dtype=np.int64), quantizedDimension=0
    )


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
