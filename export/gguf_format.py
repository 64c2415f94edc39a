"""Writing GGUF files (version 3, little endian): metadata, tensor table, then tensors one by one as they come.

    "GGUF" | u32 3 | u64 n_tensors | u64 n_kv | metadata | tensor table | padding | tensor | padding | tensor ...

The file appears under its name only when it is whole: it is written under a temporary name beside it, flushed to
disk and renamed. Source of the format: ggml `docs/gguf.md`.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from attar.engine.gguf_blocks import FORMATS, Bytes
from attar.export.errors import ExportError

ALIGNMENT = 32
_FIXED_BYTES = 4 + 4 + 8 + 8  # magic, version, counts of tensors and of metadata
_STRING, _ARRAY, _BOOL, _F32, _U32, _I32, _U64, _I64 = 8, 9, 7, 6, 4, 5, 10, 11
_ARRAY_TYPES = {"u1": 0, "i1": 1, "u2": 2, "i2": 3, "u4": 4, "i4": 5, "f4": 6, "b1": 7, "u8": 10, "i8": 11, "f8": 12}


@dataclass(frozen=True)
class TensorEntry:
    """One line of the tensor table; shape with the outermost dimension first."""

    name: str
    shape: tuple[int, ...]
    type_name: str

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's data."""
        rows = 1
        for size in self.shape[:-1]:
            rows *= size
        return rows * FORMATS[self.type_name].row_bytes(self.shape[-1])


def write_gguf(
    out: Path, metadata: Mapping[str, Any], entries: Sequence[TensorEntry], tensors: Iterable[tuple[str, Bytes]]
) -> None:
    """Writes a GGUF file, whole or not at all.

    Args:
      metadata: Values by key: bool, int (u32 where it fits), float (f32), str, lists of these and numpy arrays.
      entries: The tensor table, in the order in which the data will lie.
      tensors: Name and bytes of each entry once, in any order; consumed one at a time.

    Raises:
      ExportError: If the file cannot be written, naming why; an earlier file of that name stays as it was.
    """
    header = _header(metadata, entries)
    data_start = _align(len(header))
    offsets = _offsets(entries)
    total = gguf_bytes(metadata_bytes(metadata), entries)
    _require_space(out, total)
    with _atomic_file(out) as file:
        file.write(header)
        _write_tensors(file, {e.name: e for e in entries}, offsets, data_start, tensors)
        file.truncate(total)


def metadata_bytes(metadata: Mapping[str, Any]) -> int:
    """Bytes of a file's metadata."""
    return sum(len(_string(key)) + len(_value(key, value)) for key, value in metadata.items())


def gguf_bytes(metadata_size: int, entries: Sequence[TensorEntry]) -> int:
    """Bytes of the file that `write_gguf` makes of so many bytes of metadata and these tensors."""
    header = _FIXED_BYTES + metadata_size + len(_tensor_table(entries))
    return _align(header) + sum(_align(entry.size_bytes) for entry in entries)


def _write_tensors(
    file: BinaryIO,
    entries: dict[str, TensorEntry],
    offsets: dict[str, int],
    data_start: int,
    tensors: Iterable[tuple[str, Bytes]],
) -> None:
    waiting = set(entries)
    for name, data in tensors:
        if name not in waiting:
            raise ValueError(f"tensors must be those of the table, each once, got {name!r}")
        if data.nbytes != entries[name].size_bytes:
            raise ValueError(f"tensor {name!r} must be {entries[name].size_bytes} bytes, got {data.nbytes}")
        waiting.remove(name)
        file.seek(data_start + offsets[name])
        file.write(np.ascontiguousarray(data).data)
    if waiting:
        raise ValueError(f"tensors must be those of the table, {sorted(waiting)[0]!r} never came")


@contextmanager
def _atomic_file(out: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `out` when the block ends well and vanishes when it does not."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, out)
        _sync_folder(out.parent)
    except OSError as error:
        raise ExportError(
            f"{out}: cannot be written: {error.strerror or error}; free space or choose another place"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable, where folders can be opened (not on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_space(out: Path, needed_bytes: int) -> None:
    try:
        free = shutil.disk_usage(out.parent).free
    except OSError as error:
        raise ExportError(f"{out}: cannot be written: {error.strerror}; create the folder first") from None
    if free < needed_bytes:
        raise ExportError(f"{out}: needs {needed_bytes} bytes, {free} are free; free space or choose another place")


def _align(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _offsets(entries: Sequence[TensorEntry]) -> dict[str, int]:
    offsets, position = {}, 0
    for entry in entries:
        offsets[entry.name] = position
        position += _align(entry.size_bytes)
    return offsets


def _header(metadata: Mapping[str, Any], entries: Sequence[TensorEntry]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(entries), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _value(key, value)]
    return b"".join([*parts, _tensor_table(entries)])


def _tensor_table(entries: Sequence[TensorEntry]) -> bytes:
    offsets = _offsets(entries)
    parts = []
    for entry in entries:
        dims = entry.shape[::-1]
        parts += [
            _string(entry.name),
            struct.pack(f"<I{len(dims)}Q", len(dims), *dims),
            struct.pack("<IQ", FORMATS[entry.type_name].number, offsets[entry.name]),
        ]
    return b"".join(parts)


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Any) -> bytes:
    """Type number and content of one metadata value."""
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        kind, letter = _integer_type(key, value)
        return struct.pack(f"<I{letter}", kind, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    return struct.pack("<I", _ARRAY) + _array(key, value)


def _integer_type(key: str, value: int) -> tuple[int, str]:
    """Readers ask for u32 wherever it fits."""
    if 0 <= value < 1 << 32:
        return _U32, "I"
    if -(1 << 31) <= value < 0:
        return _I32, "i"
    if 0 <= value < 1 << 64:
        return _U64, "Q"
    if -(1 << 63) <= value < 0:
        return _I64, "q"
    raise ValueError(f"{key} must fit 64 bits, got {value}")


def _array(key: str, value: Any) -> bytes:
    """Element type, count and elements: lists of strings, numpy arrays, lists of bools, integers (i32) or floats."""
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return struct.pack("<IQ", _STRING, len(value)) + b"".join(map(_string, value))
    array = np.asarray(value)
    if not isinstance(value, np.ndarray) and array.dtype.kind in "if":
        array = array.astype(np.int32 if array.dtype.kind == "i" else np.float32)
    kind = _ARRAY_TYPES.get(f"{array.dtype.kind}{array.dtype.itemsize}")
    if kind is None or array.ndim != 1:
        raise ValueError(f"{key} must be a flat list of strings or numbers, got {array.dtype} {array.shape}")
    return struct.pack("<IQ", kind, len(array)) + array.astype(array.dtype.newbyteorder("<")).tobytes()
