"""What is inside a model folder or file: shapes, types, bytes by part, and the memory a context costs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from attar.engine.checkpoint import load_config
from attar.engine.config import ConfigError, ModelConfig
from attar.engine.gguf_reader import config_from_gguf, read_gguf
from attar.engine.safetensors_files import find_shards, read_shapes
from attar.export.errors import ExportError

PARTS = ("embedding", "attention", "mlp", "norms", "head", "other")

# Parts by what a tensor's name contains, in Hugging Face's spelling and in GGUF's. The first match counts.
_PART_WORDS = (
    ("norms", ("norm",)),
    ("embedding", ("embed_tokens", "token_embd")),
    ("attention", ("self_attn", "q_proj", "k_proj", "v_proj", "o_proj", "attn_")),
    ("head", ("lm_head", "output.weight")),
    ("mlp", ("mlp", "gate_proj", "up_proj", "down_proj", "ffn_")),
)
CONFIG_METADATA = "attar.config"
_DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor. `shape` is outermost first; `size_bytes` is what it takes in the file."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    size_bytes: int

    @property
    def part(self) -> str:
        """One of PARTS, by the tensor's name."""
        return next((part for part, words in _PART_WORDS if any(word in self.name for word in words)), "other")


@dataclass(frozen=True)
class Inspection:
    """What a file holds.

    Attributes:
      format: "GGUF", "safetensors", "ONNX" or "TFLite".
      config: The decoder it describes; None where the file does not say (not written by attar).
      facts: Further properties worth showing, by name.
    """

    path: Path
    format: str
    size_bytes: int
    config: ModelConfig | None
    tensors: tuple[TensorInfo, ...]
    facts: dict[str, str] = field(default_factory=dict)

    def bytes_by_part(self) -> dict[str, int]:
        """Stored bytes of each part that has any."""
        totals = Counter[str]()
        for tensor in self.tensors:
            totals[tensor.part] += tensor.size_bytes
        return {part: totals[part] for part in PARTS if totals[part]}

    def types_by_part(self) -> dict[str, str]:
        """Types of each part with how many tensors have them, e.g. "Q4_0 210, F32 1"."""
        counts: dict[str, Counter[str]] = {}
        for tensor in self.tensors:
            counts.setdefault(tensor.part, Counter())[tensor.type_name] += 1
        return {part: ", ".join(f"{name} {n}" for name, n in types.most_common()) for part, types in counts.items()}


def inspect_model(path: Path) -> Inspection:
    """Reads what a model folder or file holds, without its weights.

    Raises:
      ExportError: If the file is of no kind that attar knows, or damaged.
      GgufError, CheckpointError: The same for these formats.
    """
    if path.suffix == ".gguf":
        return _inspect_gguf(path)
    if path.suffix == ".tflite":
        return _inspect_tflite(path)
    if path.suffix == ".onnx" or (path / "model.onnx").is_file():
        return _inspect_onnx(path / "model.onnx" if path.is_dir() else path)
    if path.is_dir() and (path / "config.json").is_file():
        return _inspect_checkpoint(path)
    raise ExportError(f"{path}: expected a .gguf, .onnx or .tflite file, or a folder with config.json or model.onnx")


def cache_bytes(config: ModelConfig, context_length: int, value_bytes: int = 2) -> int:
    """Bytes of keys and values of one sequence: local layers hold their window, the others the whole context.

    Args:
      context_length: In tokens.
      value_bytes: Of one cached number: 2 for float16, 4 for float32.
    """
    per_token = 2 * config.num_key_value_heads * config.head_dim * value_bytes
    held = (
        min(context_length, config.sliding_window or context_length) if kind == "sliding_attention" else context_length
        for kind in config.layer_types
    )
    return per_token * sum(held)


def _inspect_gguf(path: Path) -> Inspection:
    file = read_gguf(path)
    tensors = tuple(TensorInfo(t.name, t.shape, t.type_name, t.size_bytes) for t in file.tensors.values())
    facts = {"GGUF version": str(file.version)}
    for key, label in (
        ("general.name", "name"),
        ("general.license", "licence"),
        ("tokenizer.ggml.model", "tokenizer"),
        ("tokenizer.ggml.pre", "pre-tokenizer"),
    ):
        if key in file.metadata:
            facts[label] = str(file.metadata[key])
    facts["chat template"] = "yes" if "tokenizer.chat_template" in file.metadata else "no"
    return Inspection(path, "GGUF", path.stat().st_size, config_from_gguf(file), tensors, facts)


def _inspect_checkpoint(folder: Path) -> Inspection:
    shards = find_shards(folder)
    tensors = tuple(tensor for shard in shards for tensor in _safetensors(shard))
    size = sum(shard.stat().st_size for shard in shards)
    facts = {"files": str(len(shards))}
    provenance = folder / "attar.json"
    if provenance.is_file():
        facts |= {key: str(value) for key, value in json.loads(provenance.read_text(encoding="utf-8")).items()}
    return Inspection(folder, "safetensors", size, load_config(folder), tensors, facts)


def _safetensors(shard: Path) -> Iterator[TensorInfo]:
    with safe_open(shard, framework="numpy") as file:
        for name, shape in read_shapes(shard).items():
            dtype = file.get_slice(name).get_dtype()
            yield TensorInfo(name, shape, dtype, math.prod(shape) * _DTYPE_BYTES[dtype])


def _inspect_onnx(file: Path) -> Inspection:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

    try:
        model: Any = onnx.load_model(str(file), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise ExportError(f"{file}: not a readable ONNX file: {error}; export it again") from None
    external = file.with_name(file.name + ".data")
    size = file.stat().st_size + (external.stat().st_size if external.is_file() else 0)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    opsets = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import)
    operators = Counter(node.op_type for node in model.graph.node)
    facts = {"opsets": opsets, "operators": ", ".join(f"{name} {count}" for name, count in operators.most_common(8))}
    tensors = tuple(_onnx_tensors(model))
    return Inspection(file, "ONNX", size, _parse_config(metadata.get(CONFIG_METADATA)), tensors, facts)


def _onnx_tensors(model: Any) -> Iterator[TensorInfo]:
    from onnx import TensorProto

    for tensor in model.graph.initializer:
        location = {entry.key: entry.value for entry in tensor.external_data}
        size = int(location["length"]) if "length" in location else len(tensor.raw_data)
        yield TensorInfo(tensor.name, tuple(tensor.dims), TensorProto.DataType.Name(tensor.data_type), size)


def _inspect_tflite(path: Path) -> Inspection:
    from ai_edge_litert import schema_py_generated as schema

    data = path.read_bytes()
    if data[4:8] != b"TFL3":
        raise ExportError(f"{path}: not a TFLite file: the identifier at byte 4 is {data[4:8]!r}, not b'TFL3'")
    try:
        model: Any = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))
    except Exception as error:  # flatbuffers raises whatever a damaged offset leads to
        raise ExportError(f"{path}: damaged: {type(error).__name__}: {error}; export it again") from None
    signatures = ", ".join(_text(signature.signatureKey) for signature in model.signatureDefs or ())
    metadata = {_text(entry.name): _buffer(data, model, entry.buffer) for entry in model.metadata or ()}
    config = next((found for raw in metadata.values() if (found := _nested_config(raw)) is not None), None)
    return Inspection(path, "TFLite", len(data), config, tuple(_tflite_tensors(model)), {"signatures": signatures})


def _tflite_tensors(model: Any) -> Iterator[TensorInfo]:
    """Constants of all subgraphs; a buffer that several signatures share is listed once."""
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    seen: set[int] = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            buffer = model.buffers[tensor.buffer]
            size = buffer.size or (0 if buffer.data is None else len(buffer.data))
            if size and tensor.buffer not in seen:
                seen.add(tensor.buffer)
                yield TensorInfo(_text(tensor.name), tuple(map(int, tensor.shape)), names[tensor.type], size)


def _buffer(data: bytes, model: Any, index: int) -> bytes:
    buffer = model.buffers[index]
    if buffer.size:
        return data[buffer.offset : buffer.offset + buffer.size]
    return b"" if buffer.data is None else bytes(buffer.data)


def _nested_config(raw: bytes) -> ModelConfig | None:
    """The config inside a metadata entry: the entry itself, or its member "config"."""
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    for candidate in (value, value.get("config") if isinstance(value, dict) else None):
        found = _parse_config(json.dumps(candidate)) if isinstance(candidate, dict) else None
        if found is not None:
            return found
    return None


def _parse_config(text: str | None) -> ModelConfig | None:
    try:
        return None if text is None else ModelConfig.from_hf(json.loads(text))
    except (ValueError, ConfigError):
        return None


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
