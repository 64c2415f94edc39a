"""How a checkpoint's tensors are stored in a .tflite file: matrices in the file's precision, norms in float32."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attar.engine.config import ModelConfig
from attar.engine.gguf_names import hf_shapes
from attar.export.errors import ExportError
from attar.export.tflite_file import FLOAT32, INT8, StoredTensor
from attar.quantize.qtensor import quantize_int8

Precision = Literal["fp32", "int8"]
Float32 = NDArray[np.float32]

_ROWS_AT_ONCE = 4096  # bounds the temporaries of quantising a large token table


class WeightTable:
    """Descriptions of the stored tensors, made from shapes alone: the values come when the file is written."""

    def __init__(self, config: ModelConfig, precision: Precision) -> None:
        self._shapes = hf_shapes(config)
        self._precision = precision
        self._plus_one = config.norm_plus_one
        self._stored: dict[str, StoredTensor] = {}

    def get(self, name: str) -> StoredTensor:
        """The stored form of a Hugging Face tensor; a norm's is the whole factor, 1 + weight in Gemma."""
        if name not in self._stored:
            self._stored[name] = self._describe(name, self._shapes[name])
        return self._stored[name]

    def _describe(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        offset = np.float32(self._plus_one and len(shape) == 1)

        def encode_float(weight: Float32) -> Float32:
            _check_finite(name, weight)
            return weight + offset if offset else weight

        if self._precision == "fp32" or len(shape) == 1:
            return StoredTensor(name, shape, FLOAT32, None, encode_float)
        scales = np.ones(shape[0], dtype=np.float32)

        def encode_int8(weight: Float32) -> NDArray[np.int8]:
            values = np.empty(shape, dtype=np.int8)
            _check_finite(name, weight)
            for start in range(0, shape[0], _ROWS_AT_ONCE):
                rows = slice(start, start + _ROWS_AT_ONCE)
                quantized = quantize_int8(weight[rows])
                values[rows], scales[rows] = quantized.values, quantized.scales
            return values

        return StoredTensor(name, shape, INT8, scales, encode_int8)


def _check_finite(name: str, weight: Float32) -> None:
    # One sum finds any NaN or infinity, without a mask as large as the tensor.
    if not np.isfinite(weight.sum(dtype=np.float64)):
        raise ExportError(f"{name} holds NaN or infinity; take a checkpoint from before training diverged")
