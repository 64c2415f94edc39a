"""Reads a .tflite file of attar's back: its config, and the float32 tensors that its stored weights stand for."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from attar.engine.config import ConfigError, ModelConfig
from attar.engine.gguf_names import hf_shapes, is_norm
from attar.export.errors import ExportError
from attar.export.tflite_file import IDENTIFIER, INT8

METADATA = "attar"
Float32 = NDArray[np.float32]


def stored_tensors(path: Path) -> dict[str, Float32]:
    """What the weights of an exported file really are: float32 under Hugging Face names."""
    return read_stored(path)[1]


def read_stored(path: Path) -> tuple[ModelConfig, dict[str, Float32]]:
    """Config and weights of a file, the weights as float32 by Hugging Face names (Gemma's norms as w, not 1 + w).

    Raises:
      ExportError: If the file is damaged or was not written by attar.
    """
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
        if bytes(data[4:8]) != IDENTIFIER:
            raise ValueError(f"bytes 4 to 7 must be {IDENTIFIER.decode()!r}, got {bytes(data[4:8])!r}")
        model = schema.Model.GetRootAs(data)
        config = _config(path, model, data)
        return config, _tensors(path, model, data, config)
    except (OSError, ValueError, IndexError, TypeError, struct.error) as error:
        raise ExportError(f"{path}: not a readable .tflite file: {error}; export it again") from None


def _config(path: Path, model: Any, data: NDArray[np.uint8]) -> ModelConfig:
    for i in range(model.MetadataLength()):
        entry = model.Metadata(i)
        if entry.Name() == METADATA.encode():
            content = json.loads(bytes(_bytes(model, data, entry.Buffer())))
            try:
                return ModelConfig.from_hf(content["config"])
            except ConfigError as error:
                raise ExportError(f"{path}: metadata {METADATA}: {error}") from None
    raise ExportError(f"{path}: has no {METADATA} metadata, so attar did not write it")


def _tensors(path: Path, model: Any, data: NDArray[np.uint8], config: ModelConfig) -> dict[str, Float32]:
    wanted = hf_shapes(config)
    found: dict[str, Float32] = {}
    for i in range(model.SubgraphsLength()):
        graph = model.Subgraphs(i)
        for j in range(graph.TensorsLength()):
            tensor = graph.Tensors(j)
            name = tensor.Name().decode()
            if name in wanted and name not in found:
                value = _dequantized(tensor, _bytes(model, data, tensor.Buffer())).reshape(wanted[name])
                found[name] = value - np.float32(1) if is_norm(name) and config.norm_plus_one else value
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise ExportError(f"{path}: lacks the weight {missing[0]}; export it again")
    return found


def _dequantized(tensor: Any, stored: NDArray[np.uint8]) -> Float32:
    if tensor.Type() != INT8:
        return stored.view(np.float32)
    scales: Float32 = tensor.Quantization().ScaleAsNumpy()
    return stored.view(np.int8).reshape(len(scales), -1).astype(np.float32) * scales[:, None]


def _bytes(model: Any, data: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    """Content of a buffer behind the flatbuffer, uint8 [size]."""
    buffer = model.Buffers(index)
    start, end = buffer.Offset(), buffer.Offset() + buffer.Size()
    if end > len(data):
        raise ValueError(f"buffer {index} ends at byte {end}, the file at {len(data)}")
    return data[start:end]
