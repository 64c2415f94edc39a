"""Post-training quantisation: a scheme applied to a checkpoint, tensor by tensor, and what it cost.

`encode_tensor` is the unit of work; `quantize_checkpoint` writes the rounded weights as a checkpoint folder that
every other command reads, `measure_scheme` only reports, and `attar.export.gguf_writer` stores the encoded bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attar.engine import safetensors_files
from attar.engine.checkpoint import PROVENANCE, load_config, params_from_tensors, save_model, stream_tensors
from attar.engine.gguf_blocks import FORMATS, Bytes, Floats
from attar.engine.gguf_names import hf_shapes
from attar.quantize.blocks import dequantize, quantize
from attar.quantize.policy import Assignment, Scheme, assign_types

# Values encoded and compared at a time, so that a large table needs no second float copy of itself.
_CHUNK_VALUES = 1 << 22


class QuantizeError(ValueError):
    """Weights that a format cannot hold."""


@dataclass(frozen=True)
class TensorReport:
    """What happened to one tensor.

    Attributes:
      name: Hugging Face name.
      fallback: Why it did not get the scheme's type; None if it did.
      squared_error: Sum over all weights of (w - w')^2.
      squared_norm: Sum over all weights of w^2.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    fallback: str | None
    size_bytes: int
    squared_error: float
    squared_norm: float

    @property
    def relative_error(self) -> float:
        """‖w - w'‖ / ‖w‖; 0 for a tensor of zeros."""
        return float((self.squared_error / self.squared_norm) ** 0.5) if self.squared_norm else 0.0

    @property
    def num_weights(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class QuantizeReport:
    """A scheme's cost on one model; derived figures are over all tensors."""

    scheme: Scheme
    tensors: tuple[TensorReport, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Mean number of stored bits, scales included."""
        return 8 * self.size_bytes / sum(tensor.num_weights for tensor in self.tensors)

    @property
    def relative_error(self) -> float:
        """‖w - w'‖ / ‖w‖ over all weights of the model."""
        norm = sum(tensor.squared_norm for tensor in self.tensors)
        return float((sum(tensor.squared_error for tensor in self.tensors) / norm) ** 0.5) if norm else 0.0

    @property
    def fallbacks(self) -> tuple[TensorReport, ...]:
        """Tensors that did not get the scheme's type."""
        return tuple(tensor for tensor in self.tensors if tensor.fallback is not None)


def encode_tensor(assignment: Assignment, weights: Floats) -> tuple[Bytes, TensorReport]:
    """Encodes one tensor and measures the error.

    Args:
      weights: float32 of any shape; blocks run along the last axis.

    Returns:
      uint8[rows, row_bytes] and the report.

    Raises:
      QuantizeError: If a weight is not finite or too large for the type.
    """
    cols = weights.shape[-1]
    rows = weights.reshape(-1, cols)
    data = np.empty((len(rows), FORMATS[assignment.type_name].row_bytes(cols)), np.uint8)
    squared_error = squared_norm = 0.0
    step = max(1, _CHUNK_VALUES // cols)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        try:
            data[start : start + step] = quantize(assignment.type_name, part)
        except ValueError as error:
            raise QuantizeError(f"tensor {assignment.name!r}: {error}") from None
        difference = dequantize(assignment.type_name, data[start : start + step], cols) - part
        squared_error += _sum_of_squares(difference)
        squared_norm += _sum_of_squares(part)
    report = TensorReport(
        assignment.name,
        tuple(weights.shape),
        assignment.type_name,
        assignment.fallback,
        data.nbytes,
        squared_error,
        squared_norm,
    )
    return data, report


def measure_scheme(source: Path, scheme: Scheme) -> QuantizeReport:
    """What a scheme would cost a model, without writing anything.

    Raises:
      CheckpointError: If `source` is not a model.
      QuantizeError: If a weight does not fit.
    """
    config = load_config(source)
    plan = assign_types(hf_shapes(config), scheme)
    reports = [encode_tensor(plan[name], weights)[1] for name, weights in stream_tensors(source, config)]
    return QuantizeReport(scheme, tuple(reports))


def quantize_checkpoint(source: Path, folder: Path, scheme: Scheme) -> QuantizeReport:
    """Writes a checkpoint folder whose float32 weights are exactly those the scheme can represent.

    Exporting that folder with the same scheme reproduces the same values wherever each block uses its extreme codes,
    which round-to-nearest blocks do.

    Raises:
      CheckpointError: If `source` is not a model or `folder` cannot be written.
      QuantizeError: If a weight does not fit.
    """
    config = load_config(source)
    plan = assign_types(hf_shapes(config), scheme)
    rounded: dict[str, Floats] = {}
    reports = []
    for name, weights in stream_tensors(source, config):
        data, report = encode_tensor(plan[name], weights)
        rounded[name] = dequantize(report.type_name, data, weights.shape[-1]).reshape(weights.shape)
        reports.append(report)
    provenance = _provenance(source) | {"quantized_from": source.name, "scheme": scheme.name}
    save_model(folder, config, params_from_tensors(config, rounded), source, provenance)
    return QuantizeReport(scheme, tuple(reports))


def _provenance(source: Path) -> dict[str, Any]:
    path = source / PROVENANCE
    return safetensors_files.read_json(path) if source.is_dir() and path.is_file() else {}


def _sum_of_squares(values: Floats) -> float:
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))
