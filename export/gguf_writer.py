"""Checkpoint to GGUF: the file that attar's runtime, llama.cpp and its ecosystem run.

Tensors are read, quantised and written one at a time, so memory holds the largest tensor, not the model. A tensor
of a GGUF source that already has the wanted type is copied bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attar.engine.checkpoint import load_config, stream_tensors
from attar.engine.config import ModelConfig
from attar.engine.gguf_blocks import Bytes, Floats
from attar.engine.gguf_file import GgufFile, read_gguf
from attar.engine.gguf_names import ROPE_FREQS, gguf_names, hf_shapes, interleave_rope_rows, is_norm, num_rope_heads
from attar.engine.gguf_reader import llama3_frequency_factors, tensors_from_gguf
from attar.export.errors import ExportError
from attar.export.gguf_format import TensorEntry, gguf_bytes, metadata_bytes, write_gguf
from attar.export.gguf_metadata import build_metadata, query_fold, window_period
from attar.quantize.policy import Assignment, Scheme, assign_types, make_scheme
from attar.quantize.ptq import QuantizeError, QuantizeReport, TensorReport, encode_tensor


@dataclass(frozen=True)
class GgufExport:
    """What was written.

    Attributes:
      warnings: What a user of the file should know, one sentence each.
    """

    path: Path
    size_bytes: int
    report: QuantizeReport
    warnings: tuple[str, ...]


def export_gguf(checkpoint: Path, out: Path, scheme: str | Scheme) -> GgufExport:
    """Writes a model as one GGUF file.

    Args:
      checkpoint: Hugging Face folder or GGUF file.
      out: The file to write; an existing one is replaced when the new one is whole.
      scheme: A key of `quantize.policy.SCHEMES`, or a scheme of one's own.

    Raises:
      ExportError: If GGUF cannot carry the model, a weight does not fit its type, or the file cannot be written.
      CheckpointError: If `checkpoint` is not a model.
      GgufError: The same for a GGUF file.
      TokenizerError: If its tokenizer cannot be read or carried.
    """
    scheme = make_scheme(scheme) if isinstance(scheme, str) else scheme
    file = read_gguf(checkpoint) if checkpoint.suffix == ".gguf" else None
    config = load_config(checkpoint)
    plan = assign_types(hf_shapes(config), scheme)
    metadata = build_metadata(checkpoint, file, config, scheme)
    entries = _tensor_table(config, plan)
    reports: list[TensorReport] = []
    try:
        write_gguf(out, metadata, entries, _encoded_tensors(checkpoint, file, config, plan, reports))
    except QuantizeError as error:
        raise ExportError(f"{checkpoint}: {error}; the weights are damaged or too large for {scheme.name}") from None
    report = QuantizeReport(scheme, tuple(reports))
    return GgufExport(out, out.stat().st_size, report, _warnings(config, report))


def plan_bytes(source: Path, scheme: Scheme) -> Callable[[ModelConfig], int]:
    """Bytes of the file that a model would be exported to, as a function of its shape.

    Args:
      source: Checkpoint folder or GGUF whose family and tokenizer the model shares; its own shape may be another.

    Raises:
      ExportError: If GGUF cannot carry the source.
      CheckpointError: If `source` is not a model.
    """
    file = read_gguf(source) if source.suffix == ".gguf" else None
    metadata = metadata_bytes(build_metadata(source, file, load_config(source), scheme))  # of the shape, only digits
    return lambda shape: gguf_bytes(metadata, _tensor_table(shape, assign_types(hf_shapes(shape), scheme)))


def dequantized_tensors(path: Path, config: ModelConfig | None = None) -> dict[str, Floats]:
    """What the weights of an exported file really are: float32 under Hugging Face names.

    Args:
      config: Of the checkpoint it was exported from; a query scale that the weights carry is taken out of them again.
        None leaves the weights as the file's own config understands them.
    """
    tensors = tensors_from_gguf(read_gguf(path))
    if config is None:
        return tensors
    return {name: _without_fold(config, name, weights) for name, weights in tensors.items()}


def _without_fold(config: ModelConfig, hf_name: str, weights: Floats) -> Floats:
    if not _folds_query(config, hf_name):
        return weights
    offset = np.float32(1 if config.norm_plus_one and is_norm(hf_name) else 0)
    return (weights + offset) / np.float32(query_fold(config)) - offset


def _tensor_table(config: ModelConfig, plan: dict[str, Assignment]) -> list[TensorEntry]:
    table = [
        TensorEntry(gguf_name, plan[hf_name].shape, plan[hf_name].type_name)
        for hf_name, gguf_name in gguf_names(config).items()
    ]
    if _frequency_factors(config) is not None:
        table.append(TensorEntry(ROPE_FREQS, (config.head_dim // 2,), "F32"))
    return table


def _encoded_tensors(
    checkpoint: Path,
    file: GgufFile | None,
    config: ModelConfig,
    plan: dict[str, Assignment],
    reports: list[TensorReport],
) -> Iterator[tuple[str, Bytes]]:
    """GGUF name and bytes of each tensor; its report is appended to `reports`."""
    factors = _frequency_factors(config)
    if factors is not None:
        yield ROPE_FREQS, factors.view(np.uint8)
    names = gguf_names(config)
    for hf_name, weights in stream_tensors(checkpoint, config):
        data = None if file is None else _copied(file, config, names[hf_name], plan[hf_name])
        if data is None:
            data, report = encode_tensor(plan[hf_name], _gguf_layout(config, hf_name, weights))
        else:
            report = _exact_report(plan[hf_name], weights)
        reports.append(report)
        yield names[hf_name], data


def _copied(source: GgufFile, config: ModelConfig, gguf_name: str, assignment: Assignment) -> Bytes | None:
    """The source's own bytes of a tensor, where they need no change."""
    changed = _folds_query(config, assignment.name) or source.tensors[gguf_name].type_name != assignment.type_name
    return None if changed else source.raw(gguf_name)


def _exact_report(assignment: Assignment, weights: Floats) -> TensorReport:
    norm = float(np.dot(weights.reshape(-1), weights.reshape(-1)))
    return TensorReport(
        assignment.name,
        assignment.shape,
        assignment.type_name,
        assignment.fallback,
        assignment.size_bytes,
        squared_error=0.0,
        squared_norm=norm,
    )


def _gguf_layout(config: ModelConfig, hf_name: str, weights: Floats) -> Floats:
    """A Hugging Face tensor as GGUF stores it, float32 still: row order of RoPE, 1 + w, the query scale folded in."""
    heads = num_rope_heads(config, hf_name)
    if heads is not None:
        weights = interleave_rope_rows(weights, heads)
    if config.norm_plus_one and is_norm(hf_name):
        weights = weights + np.float32(1)
    return weights * np.float32(query_fold(config)) if _folds_query(config, hf_name) else weights


def _folds_query(config: ModelConfig, hf_name: str) -> bool:
    """Whether a tensor carries the query scale: q_norm follows q_proj and would undo a factor there."""
    carrier = "q_norm" if config.use_qk_norm else "q_proj"
    return query_fold(config) != 1.0 and hf_name.endswith(f"self_attn.{carrier}.weight")


def _frequency_factors(config: ModelConfig) -> Floats | None:
    """The content of rope_freqs.weight, float32[head_dim / 2], for Llama 3's scaling."""
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type != "llama3":
        return None
    return llama3_frequency_factors(scaling, config.rope_theta, config.head_dim)


def _warnings(config: ModelConfig, report: QuantizeReport) -> tuple[str, ...]:
    warnings = [f"{tensor.name} is stored as {tensor.type_name}: {tensor.fallback}" for tensor in report.fallbacks]
    if "sliding_attention" in config.layer_types and window_period(config.layer_types) is None:
        warnings.append(
            "the local layers follow no period: attar's runtime reads them, llama.cpp assumes the family's own pattern"
        )
    return tuple(warnings)
