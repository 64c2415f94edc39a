"""TFLite files written without a converter: a flatbuffer, and after it the weights, streamed one at a time.

A TFLite file is a flatbuffer (schema `Model`) with one subgraph per signature. Weights are not put inside it but
behind it, as the schema's `Buffer.offset` and `Buffer.size` allow:

    | flatbuffer "TFL3" | pad | buffer 1 | pad | buffer 2 | ...          every buffer starts at a multiple of 64 bytes

That keeps them out of memory while the file is written, aligned for SIMD loads from a memory map (flatbuffers'
Python builder ignores `force_align`), and lets all signatures name the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from attar.export.errors import ExportError

Array = NDArray[Any]
Shape = tuple[int, ...]

IDENTIFIER = b"TFL3"  # at byte 4
ALIGNMENT_BYTES = 64
MAX_FILE_BYTES = 2**31 - 1  # 32-bit phones map no more, and runtimes keep offsets in signed 32 bits there

FLOAT32: int = schema.TensorType.FLOAT32
INT32: int = schema.TensorType.INT32
INT8: int = schema.TensorType.INT8
TYPE_OF_DTYPE = {np.dtype(np.float32): FLOAT32, np.dtype(np.int32): INT32, np.dtype(np.int8): INT8}


@dataclass(frozen=True)
class StoredTensor:
    """A constant whose bytes are made when the file is written.

    Attributes:
      key: Name under which all signatures share the bytes.
      type: Schema TensorType of the elements.
      scales: Dequantisation factors along axis 0, float32 [shape[0]], which `encode` fills; None for float tensors.
      encode: Turns the source tensor that has this key for a name into elements of `shape` and `type`.
    """

    key: str
    shape: Shape
    type: int
    scales: NDArray[np.float32] | None
    encode: Callable[[Array], Array]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * (1 if self.type == INT8 else 4)


class _SharedQuantization(schema.QuantizationParametersT):  # type: ignore[misc]  # the schema has no types
    """Symmetric quantisation along axis 0, packed once for all signatures: at a vocabulary of 262,144 it takes 3 MB."""

    def __init__(self, scales: NDArray[np.float32]) -> None:
        # The array is kept, not copied: it is filled when the weight is encoded.
        super().__init__(scale=scales, zeroPoint=np.zeros(len(scales), dtype=np.int64), quantizedDimension=0)
        self._packed: tuple[Any, int] | None = None

    def Pack(self, builder: Any) -> int:  # noqa: N802  # overrides the schema's name
        if self._packed is None or self._packed[0] is not builder:
            self._packed = (builder, super().Pack(builder))
        return self._packed[1]


@dataclass
class ModelBuilder:
    """A TFLite model under construction. Buffer 0 is the empty one that non-constant tensors name."""

    description: str
    _stored: dict[str, StoredTensor] = field(default_factory=dict)
    _buffer_of_key: dict[str, int] = field(default_factory=dict)
    _quantization_of_key: dict[str, _SharedQuantization] = field(default_factory=dict)
    _constants: dict[str, Array] = field(default_factory=dict)
    _opcodes: list[tuple[int, int]] = field(default_factory=list)
    _subgraphs: list[Any] = field(default_factory=list)
    _signatures: list[Any] = field(default_factory=list)
    _metadata: list[Any] = field(default_factory=list)

    def buffer(self, tensor: StoredTensor) -> int:
        """Index of the buffer that holds a tensor's bytes; the same key gives the same buffer."""
        if tensor.key not in self._stored:
            self._stored[tensor.key] = tensor
            self._buffer_of_key[tensor.key] = len(self._stored)
        return self._buffer_of_key[tensor.key]

    def quantization(self, tensor: StoredTensor) -> Any:
        """The schema's description of how a tensor is dequantised; None for float tensors."""
        if tensor.scales is not None and tensor.key not in self._quantization_of_key:
            self._quantization_of_key[tensor.key] = _SharedQuantization(tensor.scales)
        return self._quantization_of_key.get(tensor.key)

    def constant(self, value: Array) -> StoredTensor:
        """A constant whose content is known already; equal contents share their bytes."""
        value = np.ascontiguousarray(value)
        key = f"constant:{value.dtype}:{hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
        self._constants[key] = value
        return StoredTensor(key, value.shape, TYPE_OF_DTYPE[value.dtype], None, lambda known: known)

    def opcode(self, builtin: int, version: int) -> int:
        """Index of an operator code."""
        if (builtin, version) not in self._opcodes:
            self._opcodes.append((builtin, version))
        return self._opcodes.index((builtin, version))

    def add_metadata(self, name: str, content: Mapping[str, Any]) -> None:
        """Stores a JSON object in the model's metadata."""
        data = np.frombuffer(json.dumps(content, sort_keys=True).encode(), dtype=np.int8)
        self._metadata.append(schema.MetadataT(name=name, buffer=self.buffer(self.constant(data))))

    def add_subgraph(self, key: str, subgraph: Any, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        """Adds a schema SubGraph and publishes it as a signature, whose inputs and outputs are tensor indices."""
        self._signatures.append(
            schema.SignatureDefT(
                inputs=[schema.TensorMapT(name=name, tensorIndex=index) for name, index in inputs.items()],
                outputs=[schema.TensorMapT(name=name, tensorIndex=index) for name, index in outputs.items()],
                signatureKey=key,
                subgraphIndex=len(self._subgraphs),
            )
        )
        self._subgraphs.append(subgraph)

    def write(self, path: Path, tensors: Iterable[tuple[str, Array]]) -> int:
        """Writes the file under a temporary name, renames it, and returns its size in bytes.

        Args:
          tensors: Source tensors by the keys under which they are stored, in any order; held one at a time.

        Raises:
          ExportError: If the file would exceed what TFLite runtimes map, a tensor is missing or does not fit, or the
            file cannot be written.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                size_bytes = self._write_to(path, file, tensors)
            os.replace(temporary, path)
        except OSError as error:
            reason = error.strerror or error
            raise ExportError(f"{path}: cannot be written: {reason}; choose another folder or free space") from error
        finally:
            with suppress(OSError):
                temporary.unlink()
        return size_bytes

    def _write_to(self, path: Path, file: BinaryIO, tensors: Iterable[tuple[str, Array]]) -> int:
        # Where the data starts depends on the flatbuffer's length, and the flatbuffer holds offsets and scales that
        # are known later. Neither changes its length, so a stand-in is packed first and the real one last.
        length = len(self._pack(dict.fromkeys(self._stored, 1)))
        offsets, end = self._place(length)
        if end > MAX_FILE_BYTES:
            raise ExportError(
                f"{path}: a .tflite file must stay under 2 GiB, this one needs {end / 2**30:.2f} GiB; "
                "use int8 weights, or export GGUF"
            )
        missing = set(self._stored)
        for key, tensor in chain(self._constants.items(), tensors):
            if key in missing:  # a checkpoint may hold more than the graph uses
                self._write_one(file, offsets, key, tensor)
                missing.discard(key)
        if missing:
            raise ExportError(f"{path}: the checkpoint lacks {', '.join(sorted(missing)[:3])}; fetch the rest of it")
        file.truncate(end)
        file.seek(0)
        header = self._pack(offsets)
        if len(header) != length:
            raise AssertionError(f"the flatbuffer's length must not change, got {length} and {len(header)}")
        file.write(header)
        return end

    def _place(self, end: int) -> tuple[dict[str, int], int]:
        """Offsets of the buffers behind a flatbuffer that ends at `end`, and where the last one ends."""
        offsets = {}
        for key, tensor in self._stored.items():
            offsets[key] = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            end = offsets[key] + tensor.size_bytes
        return offsets, end

    def _write_one(self, file: BinaryIO, offsets: Mapping[str, int], key: str, tensor: Array) -> None:
        stored = self._stored[key]
        data = np.ascontiguousarray(stored.encode(tensor))
        if data.size != math.prod(stored.shape) or TYPE_OF_DTYPE.get(data.dtype) != stored.type:
            raise ExportError(f"{key}: must have shape {list(stored.shape)}, got {list(tensor.shape)}")
        file.seek(offsets[key])
        file.write(data.data)

    def _pack(self, offsets: Mapping[str, int]) -> bytearray:
        stored = self._stored.values()
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
            buffers=[schema.BufferT(), *(schema.BufferT(offset=offsets[t.key], size=t.size_bytes) for t in stored)],
            metadata=self._metadata,
            signatureDefs=self._signatures,
        )
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
        packed: bytearray = builder.Output()
        return packed
