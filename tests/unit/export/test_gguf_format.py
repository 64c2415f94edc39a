"""The GGUF writer: what it writes is read back by two readers, and a failure leaves nothing behind."""

from __future__ import annotations

import resource
import signal
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from attar.engine.gguf_file import read_gguf
from attar.export.errors import ExportError
from attar.export.gguf_format import TensorEntry, write_gguf

METADATA = {
    "general.architecture": "llama",
    "small": 7,
    "negative": -7,
    "wide": 2**40,
    "very.negative": -(2**40),
    "real": 0.25,
    "yes": True,
    "text": "tab\tπ\udcff",
    "strings": ["a", "", "\udc80"],
    "integers": [1, -2],
    "reals": [0.5, -1.5],
    "flags": [True, False],
    "bytes": np.arange(3, dtype=np.uint8),
}
ENTRIES = [TensorEntry("a", (2, 32), "Q8_0"), TensorEntry("b", (3,), "F32"), TensorEntry("c", (2, 2, 3), "F16")]


def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {entry.name: rng.integers(0, 100, entry.size_bytes, np.uint8) for entry in ENTRIES}


def test_round_trip(tmp_path: Path) -> None:
    path, tensors = tmp_path / "m.gguf", data()
    write_gguf(path, METADATA, ENTRIES, reversed(tensors.items()))
    file = read_gguf(path)
    assert list(file.metadata) == list(METADATA)
    for key, value in METADATA.items():
        np.testing.assert_array_equal(file.metadata[key], value)
    assert [(t.name, t.shape, t.type_name) for t in file.tensors.values()] == [
        (e.name, e.shape, e.type_name) for e in ENTRIES
    ]
    for name, content in tensors.items():
        np.testing.assert_array_equal(file.raw(name).reshape(-1), content)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    path, tensors = tmp_path / "m.gguf", data()
    metadata = {k: v for k, v in METADATA.items() if k not in ("text", "strings")}  # not UTF-8: it would not decode
    write_gguf(path, metadata, ENTRIES, tensors.items())
    reader = gguf.GGUFReader(path)
    kinds = {key: field.types[-1].name for key, field in reader.fields.items()}
    assert [kinds[k] for k in ("small", "negative", "wide", "very.negative")] == ["UINT32", "INT32", "UINT64", "INT64"]
    assert [kinds[k] for k in ("real", "yes", "integers", "reals", "flags")] == [
        *("FLOAT32", "BOOL", "INT32", "FLOAT32", "BOOL")
    ]
    for tensor in reader.tensors:
        np.testing.assert_array_equal(tensor.data.view(np.uint8).reshape(-1), tensors[tensor.name])


def test_replaces_only_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"before")

    def failing() -> Iterator[tuple[str, np.ndarray]]:
        yield "a", data()["a"]
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_gguf(path, METADATA, ENTRIES, failing())
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("x", np.zeros(4, np.uint8))], "must be those of the table, each once, got 'x'"),
        ([("b", np.zeros(12, np.uint8))] * 2, "each once, got 'b'"),
        ([("b", np.zeros(11, np.uint8))], "tensor 'b' must be 12 bytes, got 11"),
        ([("b", np.zeros(12, np.uint8))], "'a' never came"),
    ],
)
def test_refuses_tensors_beside_the_table(tmp_path: Path, tensors: list[tuple[str, np.ndarray]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "m.gguf", METADATA, ENTRIES, tensors)
    assert not list(tmp_path.iterdir())


def test_refuses_values_that_gguf_cannot_hold(tmp_path: Path) -> None:
    for value in (2**64, np.zeros((2, 2)), {"a": 1}, [1 + 2j]):
        with pytest.raises(ValueError, match=r"^key must "):
            write_gguf(tmp_path / "m.gguf", {"key": value}, [], [])


def test_full_disk_is_found_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1000, 900, 100))
    with pytest.raises(ExportError, match=r"m\.gguf: needs \d+ bytes, 100 are free; free space"):
        write_gguf(tmp_path / "m.gguf", METADATA, ENTRIES, data().items())
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    """A file size limit makes write() fail as a full disk does, at the second tensor."""
    entries = [TensorEntry("a", (64, 64), "F32"), TensorEntry("b", (64, 64), "F32")]
    tensors = [(entry.name, np.zeros(entry.size_bytes, np.uint8)) for entry in entries]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, before[1]))
        with pytest.raises(ExportError, match=r"m\.gguf: cannot be written: File too large; free space"):
            write_gguf(tmp_path / "m.gguf", METADATA, entries, tensors)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be written: No such file or directory; create the folder first"):
        write_gguf(tmp_path / "absent" / "m.gguf", METADATA, ENTRIES, data().items())
