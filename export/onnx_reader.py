"""Reads an ONNX decoder of attar's back: its config, and the float32 tensors that its stored weights stand for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types
from numpy.typing import NDArray
from onnx import helper

from attar.engine.config import ConfigError, ModelConfig
from attar.engine.gguf_names import hf_shapes, is_norm
from attar.export.errors import ExportError
from attar.export.onnx_weights import Float32, dequantize_blocks

CONFIG_KEY = "attar.config"


def read_stored(path: Path) -> tuple[ModelConfig, dict[str, Float32]]:
    """Config and weights of a file, the weights as float32 by Hugging Face names (Gemma's norms as w, not 1 + w).

    Args:
      path: The `.onnx` file, or the folder that holds `model.onnx`.

    Raises:
      ExportError: If the file is damaged or was not written by attar.
    """
    file = path / "model.onnx" if path.is_dir() else path
    try:
        model = onnx.load_model(str(file), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise ExportError(f"{file}: not a readable ONNX file: {error}; export it again") from None
    config = _config(file, model)
    shapes = hf_shapes(config)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors = dict(_matrices(file, initializers, _quantized(model), shapes))
    for name in filter(is_norm, shapes):
        stored = _array(file, initializers, name)
        tensors[name] = stored - np.float32(1) if config.norm_plus_one else stored
    missing = sorted(shapes.keys() - tensors.keys())
    if missing:
        raise ExportError(f"{file}: lacks the weight {missing[0]}; export it again")
    return config, tensors


def _config(file: Path, model: Any) -> ModelConfig:
    entries = {entry.key: entry.value for entry in model.metadata_props}
    if CONFIG_KEY not in entries:
        raise ExportError(f"{file}: has no {CONFIG_KEY} in its metadata, so attar did not write it")
    try:
        return ModelConfig.from_hf(json.loads(entries[CONFIG_KEY]))
    except (ValueError, ConfigError) as error:
        raise ExportError(f"{file}: metadata {CONFIG_KEY}: {error}") from None


def _quantized(model: Any) -> dict[str, tuple[str, int]]:
    """Initializer with the data, and width in bits, of each quantised matrix, by the name of the matrix."""
    data_input = {"MatMulNBits": 1, "GatherBlockQuantized": 0}
    found = {}
    for node in model.graph.node:
        if node.op_type in data_input:
            bits = next(attribute.i for attribute in node.attribute if attribute.name == "bits")
            found[node.input[2].removesuffix(".scales")] = (node.input[data_input[node.op_type]], bits)
    return found


def _matrices(
    file: Path,
    initializers: Mapping[str, Any],
    quantized: Mapping[str, tuple[str, int]],
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, Float32]]:
    """Every matrix, those that are stored as one taken apart again."""
    for stem in initializers.keys() | quantized.keys():
        names = stem.split("+")
        if not all(len(shapes.get(name, ())) == 2 for name in names):
            continue
        cols = shapes[names[0]][1]
        if stem in quantized:
            data_name, bits = quantized[stem]
            scales = _array(file, initializers, f"{stem}.scales")
            data = _array(file, initializers, data_name).reshape(*scales.shape, -1)
            matrix = dequantize_blocks(data, scales, bits, cols)
        else:
            matrix = _array(file, initializers, stem)
        ends = np.cumsum([shapes[name][0] for name in names])
        yield from zip(names, np.split(matrix, ends[:-1]), strict=True)


def _array(file: Path, initializers: Mapping[str, Any], name: str) -> NDArray[Any]:
    """The values of one initializer, from the graph or from the data file beside it."""
    tensor = initializers.get(name)
    if tensor is None:
        raise ExportError(f"{file}: lacks the weight {name}; export it again")
    if not tensor.external_data:
        return onnx.numpy_helper.to_array(tensor)
    entry = {item.key: item.value for item in tensor.external_data}
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape, offset = tuple(tensor.dims), int(entry["offset"])
    data_file = file.with_name(Path(entry["location"]).name)
    end = offset + int(np.prod(shape)) * dtype.itemsize
    if not data_file.is_file() or data_file.stat().st_size < end:
        raise ExportError(f"{data_file}: shorter than {name} needs ({end} bytes); export it again")
    return np.fromfile(data_file, dtype, int(np.prod(shape)), offset=offset).reshape(shape)
