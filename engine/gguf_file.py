"""A checked view of a GGUF file (versions 2 and 3, little endian).

    offset 0   "GGUF" | u32 version | u64 n_tensors | u64 n_kv
               n_kv      x { string key | u32 type | value }             string = u64 length | bytes
               n_tensors x { string name | u32 n_dims | u64 dims[n_dims] | u32 type | u64 offset }
    aligned    tensor data, each at data_start + offset, dims innermost first

The file is untrusted: every count, length, type and offset is compared with the file's size before it is used, so
no loop and no allocation is larger than the file itself. Source: ggml `docs/gguf.md`.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attar.engine.gguf_blocks import FORMATS, FORMATS_BY_NUMBER, UNREAD_TYPES, Bytes, Floats, dequantize

_MAX_KEY_BYTES = 65535
_MAX_NAME_BYTES = 64
_MAX_DIMS = 4
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: dict[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
# Fewest bytes an entry can take; a count above remaining / minimum cannot be true.
_MIN_KV_BYTES, _MIN_TENSOR_BYTES, _MIN_STRING_BYTES = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8, 8


class GgufError(ValueError):
    """A GGUF file that is damaged, or that describes something attar does not run."""


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies in the file.

    Attributes:
      shape: Outermost dimension first, as in numpy and PyTorch.
      type_name: A key of `gguf_blocks.FORMATS`.
      offset: First byte, counted from the start of the file.
      size_bytes: Length in the file.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    size_bytes: int

    @property
    def cols(self) -> int:
        """Length of a row, the innermost dimension."""
        return self.shape[-1]

    @property
    def num_elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """An opened GGUF file; tensor data stays in the file until it is asked for.

    Attributes:
      metadata: Python values; arrays of strings are `list[str]`, other arrays are numpy arrays. Bytes that are not
        UTF-8 are kept by `surrogateescape`.
      tensors: By name, in the file's order.
    """

    path: Path
    version: int
    alignment: int
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    _data: mmap.mmap = field(repr=False)

    def tensor(self, name: str) -> GgufTensor:
        """The entry of one tensor.

        Raises:
          GgufError: If the file has no such tensor.
        """
        if name not in self.tensors:
            raise GgufError(f"{self.path}: has no tensor {name!r}; it is not a complete model of its architecture")
        return self.tensors[name]

    def raw(self, name: str) -> Bytes:
        """The stored bytes of one tensor, uint8[rows, row_bytes], a view of the mapped file."""
        entry = self.tensor(name)
        row_bytes = FORMATS[entry.type_name].row_bytes(entry.cols)
        return np.frombuffer(self._data, np.uint8, entry.size_bytes, entry.offset).reshape(-1, row_bytes)

    def dequantize(self, name: str) -> Floats:
        """One tensor as float32 of its shape, exactly the values that ggml computes with."""
        entry = self.tensor(name)
        return dequantize(entry.type_name, self.raw(name), entry.cols).reshape(entry.shape)


def read_gguf(path: Path) -> GgufFile:
    """Opens and checks a GGUF file.

    Raises:
      GgufError: If the file is missing or malformed, naming the byte where reading stopped.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                raise GgufError(f"{path}: holds {size} bytes, too few for a GGUF header; fetch the file again")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise GgufError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    return _parse(_Cursor(Path(path), data))


class _Cursor:
    """A read position in the mapped file that cannot leave it."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.position = 0

    def fail(self, what: str, remedy: str = "the file is damaged, fetch or write it again") -> GgufError:
        return GgufError(f"{self.path}: {what}, at byte {self.position}; {remedy}")

    def advance(self, length: int, what: str) -> int:
        """Steps over `length` bytes and returns where they start."""
        if length > self.size - self.position:
            left = self.size - self.position
            raise self.fail(f"{what} needs {length} bytes where {left} are left")
        start = self.position
        self.position += length
        return start

    def integer(self, length: int, what: str) -> int:
        start = self.advance(length, what)
        return int.from_bytes(self.data[start : start + length], "little")

    def count(self, minimum_bytes: int, what: str) -> int:
        """A u64 count of entries that take at least `minimum_bytes` each."""
        count = self.integer(8, what)
        if count > (self.size - self.position) // minimum_bytes:
            raise self.fail(f"{what} says {count}, more than the file can hold")
        return count

    def string(self, what: str, longest: int | None = None) -> str:
        length = self.integer(8, what)
        if longest is not None and not 1 <= length <= longest:
            raise self.fail(f"{what} is {length} bytes long, the format allows 1 to {longest}")
        start = self.advance(length, what)
        return self.data[start : start + length].decode("utf-8", "surrogateescape")


def _parse(cursor: _Cursor) -> GgufFile:
    version, num_tensors, num_kv = _read_header(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(num_kv):
        key = cursor.string("metadata key", _MAX_KEY_BYTES)
        if key in metadata:
            raise cursor.fail(f"metadata key {key!r} appears twice")
        metadata[key] = _read_value(cursor, key)
    entries = [_read_tensor_entry(cursor) for _ in range(num_tensors)]
    alignment = _alignment(cursor, metadata)
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for entry in entries:
        if entry.name in tensors:
            raise cursor.fail(f"tensor {entry.name!r} appears twice")
        tensors[entry.name] = _place(cursor, entry, data_start, alignment)
    return GgufFile(cursor.path, version, alignment, metadata, tensors, cursor.data)


def _read_header(cursor: _Cursor) -> tuple[int, int, int]:
    magic = cursor.data[:4]
    if magic != b"GGUF":
        raise cursor.fail(f"starts with {magic!r} instead of b'GGUF'", "it is not a GGUF file")
    cursor.advance(4, "magic")
    version = cursor.integer(4, "version")
    if version not in (2, 3):
        big_endian = version in (2 << 24, 3 << 24)
        found = "big-endian data" if big_endian else f"version {version}"
        raise cursor.fail(f"holds {found}", "attar reads little-endian GGUF versions 2 and 3: convert the file")
    num_tensors = cursor.count(_MIN_TENSOR_BYTES, "tensor count")
    num_kv = cursor.count(_MIN_KV_BYTES, "metadata count")
    return version, num_tensors, num_kv


def _read_value(cursor: _Cursor, key: str) -> Any:
    kind = cursor.integer(4, f"type of {key!r}")
    if kind == _ARRAY:
        return _read_array(cursor, key)
    if kind == _STRING:
        return cursor.string(f"value of {key!r}")
    if kind not in _SCALARS:
        raise cursor.fail(f"{key!r} has the unknown value type {kind}")
    value = _read_numbers(cursor, key, kind, 1)[0].item()
    return bool(value) if kind == _BOOL else value


def _read_array(cursor: _Cursor, key: str) -> Any:
    kind = cursor.integer(4, f"element type of {key!r}")
    if kind == _STRING:
        count = cursor.count(_MIN_STRING_BYTES, f"length of {key!r}")
        what = f"element of {key!r}"
        return [cursor.string(what) for _ in range(count)]
    if kind not in _SCALARS:
        raise cursor.fail(f"array {key!r} has the unknown element type {kind}")
    count = cursor.count(np.dtype(_SCALARS[kind]).itemsize, f"length of {key!r}")
    numbers = _read_numbers(cursor, key, kind, count)
    return numbers.astype(np.bool_) if kind == _BOOL else numbers


def _read_numbers(cursor: _Cursor, key: str, kind: int, count: int) -> np.ndarray[Any, Any]:
    dtype = np.dtype(_SCALARS[kind])
    start = cursor.advance(count * dtype.itemsize, f"value of {key!r}")
    numbers = np.frombuffer(cursor.data, dtype, count, start).copy()
    if kind == _BOOL and numbers.size and numbers.max() > 1:
        raise cursor.fail(f"{key!r} must be 0 or 1 (bool), got {numbers.max()}")
    return numbers


def _read_tensor_entry(cursor: _Cursor) -> GgufTensor:
    """One tensor's description; `offset` is still relative to the data section and unchecked."""
    name = cursor.string("tensor name", _MAX_NAME_BYTES)
    num_dims = cursor.integer(4, f"dimension count of {name!r}")
    if not 1 <= num_dims <= _MAX_DIMS:
        raise cursor.fail(f"tensor {name!r} has {num_dims} dimensions, the format allows 1 to {_MAX_DIMS}")
    dims = [cursor.integer(8, f"dimensions of {name!r}") for _ in range(num_dims)]
    if 0 in dims:
        raise cursor.fail(f"tensor {name!r} has a zero dimension: {dims}")
    number = cursor.integer(4, f"type of {name!r}")
    if number not in FORMATS_BY_NUMBER:
        found = UNREAD_TYPES.get(number, f"number {number}")
        raise cursor.fail(f"tensor {name!r} has type {found}", f"attar reads {', '.join(FORMATS)}: requantise the file")
    format = FORMATS_BY_NUMBER[number]
    if dims[0] % format.block_cols:
        raise cursor.fail(f"rows of tensor {name!r} must be a multiple of {format.block_cols}, got {dims[0]}")
    size_bytes = math.prod(dims[1:]) * format.row_bytes(dims[0])
    offset = cursor.integer(8, f"offset of {name!r}")
    return GgufTensor(name, tuple(reversed(dims)), format.name, offset, size_bytes)


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or isinstance(alignment, bool) or not 0 < alignment <= 1 << 20:
        raise cursor.fail(f"general.alignment must be an integer from 1 to 1048576, got {alignment!r}")
    if alignment & (alignment - 1):
        raise cursor.fail(f"general.alignment must be a power of two, got {alignment}")
    return alignment


def _place(cursor: _Cursor, entry: GgufTensor, data_start: int, alignment: int) -> GgufTensor:
    """Turns an entry's offset into a place in the file, checked."""
    if entry.offset % alignment:
        raise cursor.fail(f"offset of tensor {entry.name!r} must be a multiple of {alignment}, got {entry.offset}")
    start = data_start + entry.offset
    if entry.size_bytes > cursor.size or start > cursor.size - entry.size_bytes:
        raise GgufError(
            f"{cursor.path}: tensor {entry.name!r} needs {entry.size_bytes} bytes, at byte {start}, "
            f"but the file ends at {cursor.size}; it is cut short, fetch or write it again"
        )
    return GgufTensor(entry.name, entry.shape, entry.type_name, start, entry.size_bytes)
