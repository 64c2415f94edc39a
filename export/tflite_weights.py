"""How a checkpoint's tensors are stored in a .tflite file, and what the stored values stand for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attar.engine.checkpoint import read_tensors
from attar.export.errors import ExportError
from attar.export.tflite_graph import FLOAT32, INT8, StoredWeight

Precision = Literal["fp32", "int8"]
Float32 = NDArray[np.float32]

_INT8_MAX = 127  # -128 is unused, so that negating a row negates its integers


class WeightSource:
    """A checkpoint's tensors as one file stores them: matrices in the file's precision, norms in float32.

    Nothing is quantised before the file is written; until then only the scales are held.
    """

    def __init__(self, tensors: Mapping[str, Float32], precision: Precision) -> None:
        self._tensors = tensors
        self._precision = precision
        self._stored: dict[str, StoredWeight] = {}

    def matrix(self, name: str) -> StoredWeight:
        """A weight [out, in], or the embedding table [V, D]."""
        if name not in self._stored:
            self._stored[name] = self._store_matrix(name)
        return self._stored[name]

    def norm(self, name: str, plus_one: bool) -> Float32:
        """The factor of an RMSNorm, [D]: the weight, or 1 + weight."""
        weight = self._read(name)
        return weight + np.float32(1) if plus_one else weight

    def _store_matrix(self, name: str) -> StoredWeight:
        weight = self._read(name)
        if self._precision == "fp32":
            return StoredWeight(name, weight.shape, FLOAT32, None, lambda: self._tensors[name])
        scales = row_scales(weight)
        return StoredWeight(name, weight.shape, INT8, scales, lambda: quantize_rows(self._tensors[name], scales))

    def _read(self, name: str) -> Float32:
        weight = self._tensors.get(name)
        if weight is None:
            raise ExportError(f"checkpoint lacks the tensor {name}")
        if not np.isfinite(weight.sum(dtype=np.float64)):
            raise ExportError(f"{name} holds NaN or infinity; export a checkpoint from before training diverged")
        return weight


def row_scales(weight: Float32) -> Float32:
    """Scale of each row so that its largest magnitude becomes 127: float32 [rows]. Zero rows get 1."""
    largest = np.maximum(weight.max(axis=1), -weight.min(axis=1))
    return np.where(largest > 0, largest / np.float32(_INT8_MAX), np.float32(1)).astype(np.float32)


def quantize_rows(weight: Float32, scales: Float32) -> NDArray[np.int8]:
    """Nearest integers to weight [rows, cols] / scales [rows], ties to even."""
    levels = np.rint(weight / scales[:, None])
    return np.clip(levels, -_INT8_MAX, _INT8_MAX).astype(np.int8)


def stored_tensors(checkpoint: Path, weights: Precision) -> dict[str, Float32]:
    """The float32 tensors that an exported file's weights stand for, by Hugging Face names."""
    tensors = dict(read_tensors(checkpoint))
    if weights == "int8":
        for name, weight in tensors.items():
            if weight.ndim == 2:
                scales = row_scales(weight)
                tensors[name] = quantize_rows(weight, scales).astype(np.float32) * scales[:, None]
    return tensors
