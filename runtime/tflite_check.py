"""Checks a .tflite file before a runtime maps it: LiteRT trusts the offsets of buffers behind the flatbuffer."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from attar.runtime.session import SessionError

_IDENTIFIER = b"TFL3"
_MIN_BYTES = 8  # root offset and identifier


def check_buffers(path: Path) -> None:
    """Makes sure that a file is TFLite and holds all bytes that its buffers name.

    Raises:
      SessionError: If it cannot be read, is something else, or is cut off.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_MIN_BYTES)
    except OSError as error:
        raise SessionError(f"{path}: cannot be read: {error.strerror}") from None
    if head[4:] != _IDENTIFIER:
        raise SessionError(f"{path}: not a .tflite file: bytes 4 to 7 must be 'TFL3', got {head[4:]!r}")
    data = np.memmap(path, dtype=np.uint8, mode="r")
    try:
        _check(path, schema.Model.GetRootAs(data), size)
    except (ValueError, IndexError, TypeError, OverflowError, struct.error) as error:
        raise SessionError(f"{path}: damaged .tflite file: {error}; export or fetch it again") from None


def _check(path: Path, model: Any, size: int) -> None:
    count = model.BuffersLength()
    if count > size // 4:  # each buffer takes an offset of 4 bytes
        raise ValueError(f"it states {count} buffers in {size} bytes")
    for i in range(count):
        buffer = model.Buffers(i)
        end = buffer.Offset() + buffer.Size()
        if end > size:
            raise SessionError(f"{path}: cut off: buffer {i} ends at byte {end}, the file at {size}; fetch it again")
