"""The GGUF parser: what it reads, and the damaged files it must refuse with a place and a remedy."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from attar.engine.gguf_file import GgufError, read_gguf

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def kv(key: str, kind: int, value: bytes) -> bytes:
    return text(key.encode()) + struct.pack("<I", kind) + value


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name.encode()) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf(
    entries: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A file by the letter of the format; `counts` overrides the header's tensor and metadata counts."""
    num_tensors, num_kv = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_kv) + b"".join(entries) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def save(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return path


ONE_TENSOR = gguf((), (tensor("w", [3, 2]),), np.arange(6, dtype="<f4").tobytes())


def test_reads_every_kind_of_value(tmp_path: Path) -> None:
    file = read_gguf(
        save(
            tmp_path,
            gguf(
                (
                    kv("u8", U8, b"\xff"),
                    kv("i8", I8, b"\xff"),
                    kv("u16", U16, b"\xff\xff"),
                    kv("i16", I16, b"\xfe\xff"),
                    kv("u32", U32, struct.pack("<I", 2**32 - 1)),
                    kv("i32", I32, struct.pack("<i", -5)),
                    kv("f32", F32, struct.pack("<f", 0.5)),
                    kv("bool", BOOL, b"\1"),
                    kv("string", STRING, text("héllo".encode())),
                    kv("bytes", STRING, text(b"\xff\xfe")),
                    kv("u64", U64, struct.pack("<Q", 2**63)),
                    kv("i64", I64, struct.pack("<q", -(2**62))),
                    kv("f64", F64, struct.pack("<d", 1e300)),
                    kv("strings", ARRAY, struct.pack("<IQ", STRING, 2) + text(b"a") + text(b"\x80")),
                    kv("numbers", ARRAY, struct.pack("<IQ3i", I32, 3, 1, -2, 3)),
                    kv("flags", ARRAY, struct.pack("<IQ", BOOL, 2) + b"\0\1"),
                    kv("none", ARRAY, struct.pack("<IQ", F32, 0)),
                )
            ),
        )
    )
    metadata = file.metadata
    assert [metadata[k] for k in ("u8", "i8", "u16", "i16", "u32", "i32")] == [255, -1, 65535, -2, 2**32 - 1, -5]
    assert (metadata["f32"], metadata["bool"], metadata["string"]) == (0.5, True, "héllo")
    assert (metadata["u64"], metadata["i64"], metadata["f64"]) == (2**63, -(2**62), 1e300)
    assert metadata["bytes"].encode("utf-8", "surrogateescape") == b"\xff\xfe"
    assert [s.encode("utf-8", "surrogateescape") for s in metadata["strings"]] == [b"a", b"\x80"]
    np.testing.assert_array_equal(metadata["numbers"], np.array([1, -2, 3], np.int32))
    np.testing.assert_array_equal(metadata["flags"], [False, True])
    assert metadata["none"].dtype == np.float32
    assert len(metadata["none"]) == 0


@pytest.mark.parametrize("version", [2, 3])
def test_reads_tensors(tmp_path: Path, version: int) -> None:
    data = np.arange(8, dtype="<f4").tobytes() + np.arange(2, dtype="<f2").tobytes()
    tensors = (tensor("a", [4, 2]), tensor("b", [2], kind=1, offset=32))
    file = read_gguf(save(tmp_path, gguf((), tensors, data, version)))
    assert file.version == version
    assert file.tensors["a"].shape == (2, 4)
    np.testing.assert_array_equal(file.dequantize("a"), np.arange(8, dtype=np.float32).reshape(2, 4))
    np.testing.assert_array_equal(file.dequantize("b"), np.array([0, 1], np.float32))
    assert file.raw("b").shape == (1, 4)


def test_honours_alignment(tmp_path: Path) -> None:
    alignment = kv("general.alignment", U32, struct.pack("<I", 8))
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + alignment + tensor("w", [1])
    path = save(tmp_path, head + b"\0" * (-len(head) % 8) + struct.pack("<f", 7))
    assert read_gguf(path).dequantize("w") == [7]


HUGE = 2**64 - 1
DAMAGED = {
    "empty": (b"", "holds 0 bytes, too few for a GGUF header"),
    "magic": (b"GGML" + b"\0" * 60, r"starts with b'GGML' instead of b'GGUF', at byte 0; it is not a GGUF file"),
    "version 1": (gguf(version=1), "holds version 1, at byte 8; attar reads"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "holds big-endian data"),
    "tensor count": (gguf(counts=(HUGE, 0)), f"tensor count says {HUGE}, more than the file can hold, at byte 16"),
    "key count": (gguf(counts=(0, 2**61)), f"metadata count says {2**61}, more than the file can hold"),
    "one key too many": (gguf((kv("k", U8, b"\1"),), counts=(0, 2)), "metadata key is 0 bytes long"),
    "key length": (gguf((struct.pack("<Q", 2**40) + b"k" * 64,)), "metadata key is 1099511627776 bytes long"),
    "duplicate key": (gguf((kv("k", U8, b"\1"), kv("k", U8, b"\2"))), "metadata key 'k' appears twice"),
    "value type": (gguf((kv("k", 13, b"\1" * 32),)), "'k' has the unknown value type 13"),
    "bool": (gguf((kv("k", BOOL, b"\2"),)), r"'k' must be 0 or 1 \(bool\), got 2"),
    "string length": (gguf((kv("k", STRING, struct.pack("<Q", HUGE)),)), f"value of 'k' needs {HUGE} bytes"),
    "array count": (
        gguf((kv("k", ARRAY, struct.pack("<IQ", U32, 2**62)),)),
        f"length of 'k' says {2**62}, more than the file",
    ),
    "string array count": (gguf((kv("k", ARRAY, struct.pack("<IQ", STRING, 99)),)), "length of 'k' says 99"),
    "array of arrays": (gguf((kv("k", ARRAY, struct.pack("<IQ", ARRAY, 1)),)), "unknown element type 9"),
    "no dimensions": (gguf((), (tensor("w", []) + b"\0" * 32,)), "tensor 'w' has 0 dimensions"),
    "many dimensions": (gguf((), (tensor("w", [1] * 5),)), "tensor 'w' has 5 dimensions, the format allows 1 to 4"),
    "zero dimension": (gguf((), (tensor("w", [4, 0]),)), r"tensor 'w' has a zero dimension: \[4, 0\]"),
    "overflow": (gguf((), (tensor("w", [2**40, 2**40]),), b"\0" * 64), "tensor 'w' needs .* the file ends at"),
    "wrapping overflow": (gguf((), (tensor("w", [2**32, 2**32]),), b"\0" * 64), "tensor 'w' needs"),
    "unread type": (gguf((), (tensor("w", [256], kind=10),)), "tensor 'w' has type Q2_K, .* requantise the file"),
    "unknown type": (gguf((), (tensor("w", [256], kind=77),)), "tensor 'w' has type number 77"),
    "ragged rows": (gguf((), (tensor("w", [33], kind=8),)), "rows of tensor 'w' must be a multiple of 32, got 33"),
    "offset": (gguf((), (tensor("w", [1], offset=2**40),), b"\0" * 4), "tensor 'w' needs 4 bytes, at byte"),
    "wrapping offset": (gguf((), (tensor("w", [1], offset=2**64 - 32),), b"\0" * 4), "tensor 'w' needs 4 bytes"),
    "odd offset": (gguf((), (tensor("w", [1], offset=4),), b"\0" * 64), "must be a multiple of 32, got 4"),
    "duplicate tensor": (gguf((), (tensor("w", [1]), tensor("w", [1])), b"\0" * 32), "tensor 'w' appears twice"),
    "tensor name": (gguf((), (tensor("w" * 65, [1]),), b"\0" * 32), "tensor name is 65 bytes long"),
    "zero alignment": (gguf((kv("general.alignment", U32, b"\0" * 4),)), "general.alignment must be an integer"),
    "alignment": (gguf((kv("general.alignment", U32, b"\x21\0\0\0"),)), "must be a power of two, got 33"),
    "alignment type": (gguf((kv("general.alignment", STRING, text(b"32")),)), "general.alignment must be an integer"),
}


@pytest.mark.parametrize("case", list(DAMAGED))
def test_refuses_damaged_files(tmp_path: Path, case: str) -> None:
    content, message = DAMAGED[case]
    path = save(tmp_path, content)
    with pytest.raises(GgufError, match=message) as caught:
        read_gguf(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "; " in str(caught.value)


def test_refuses_a_file_cut_anywhere(tmp_path: Path) -> None:
    assert read_gguf(save(tmp_path, ONE_TENSOR)).dequantize("w").shape == (2, 3)
    for length in range(len(ONE_TENSOR)):
        with pytest.raises(GgufError):
            read_gguf(save(tmp_path, ONE_TENSOR[:length]))


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match=r"cannot be read .*check the path"):
        read_gguf(tmp_path / "absent.gguf")
    with pytest.raises(GgufError, match="cannot be read"):
        read_gguf(tmp_path)


def test_names_a_missing_tensor(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="has no tensor 'v'"):
        read_gguf(save(tmp_path, ONE_TENSOR)).dequantize("v")
