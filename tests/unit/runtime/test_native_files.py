"""Every kind of bad GGUF gives one line that names the file and the place, and never a crash."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from attar.runtime.native import NativeModel, NativeSession
from attar.runtime.session import SessionError

if TYPE_CHECKING:
    from tests.unit.runtime.conftest import MakeTiny

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10
ALIGNMENT = 32


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


@dataclass
class RawGguf:
    """A GGUF file as its fields, so that a test can falsify any of them.

    Attributes:
      keys: (key, type, value bytes).
      tensors: (name, dimensions innermost first, type, offset).
    """

    magic: bytes = b"GGUF"
    version: int = 3
    keys: list[tuple[str, int, bytes]] = field(default_factory=list)
    tensors: list[tuple[str, list[int], int, int]] = field(default_factory=list)
    n_keys: int | None = None
    n_tensors: int | None = None
    data_bytes: int = 4096

    def to_bytes(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        head = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        head += b"".join(string(key) + struct.pack("<I", kind) + value for key, kind, value in self.keys)
        for name, dims, kind, offset in self.tensors:
            head += string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        return head + bytes(-len(head) % ALIGNMENT) + bytes(self.data_bytes)


def opening_error(path: Path) -> str:
    """The message of the refusal, which must be one line that begins with the file's name."""
    with pytest.raises(SessionError) as caught:
        NativeModel(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def error_of(path: Path, content: bytes) -> str:
    """The message when a file of this content is opened."""
    path.write_bytes(content)
    return opening_error(path)


def key(name: str, kind: int, value: bytes) -> Callable[[RawGguf], None]:
    return lambda raw: raw.keys.append((name, kind, value))


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> Callable[[RawGguf], None]:
    return lambda raw: raw.tensors.append((name, dims, kind, offset))


def also(*changes: Callable[[RawGguf], None]) -> Callable[[RawGguf], None]:
    def change(raw: RawGguf) -> None:
        for one in changes:
            one(raw)

    return change


def setting(**fields: object) -> Callable[[RawGguf], None]:
    def change(raw: RawGguf) -> None:
        for name, value in fields.items():
            setattr(raw, name, value)

    return change


MALFORMED = {
    "wrong magic": (setting(magic=b"GGML"), r"not a GGUF file: byte 0"),
    "version 1": (setting(version=1), r"version must be 2 or 3 .*, got 1"),
    "big endian": (setting(version=3 << 24), r"version must be 2 or 3 \(little endian\)"),
    "keys beyond the file": (setting(n_keys=2**40), r"byte 8 counts 0 tensors and 1099511627776 keys"),
    "tensors beyond the file": (setting(n_tensors=2**62), r"byte 8 counts 4611686018427387904 tensors"),
    "one key too many": (setting(n_keys=1), r"a metadata key at byte 24 must have 1 to 65535 bytes, got 0"),
    "key length wraps": (key("x", STRING, struct.pack("<Q", 2**64 - 1)), r"truncated: a metadata string at byte \d+"),
    "unknown value type": (key("x", 77, b""), r"key x before byte \d+ has unknown type 77"),
    "array length wraps": (
        key("x", ARRAY, struct.pack("<IQ", U64, 2**61)),
        r"truncated: an array at byte \d+ needs 18446744073709551615 bytes",
    ),
    "array of strings beyond the file": (
        key("x", ARRAY, struct.pack("<IQ", STRING, 2**63)),
        r"truncated: a string in an array at byte \d+",
    ),
    "array of arrays": (key("x", ARRAY, struct.pack("<IQ", ARRAY, 1)), r"key x .* is an array of type 9"),
    "duplicate key": (also(key("x", U8, b"\1"), key("x", U8, b"\2")), r"metadata key x appears twice"),
    "empty key": (key("", U8, b"\1"), r"a metadata key at byte 24 must have 1 to 65535 bytes, got 0"),
    "alignment of zero": (
        key("general.alignment", U32, bytes(4)),
        r"general.alignment must be a power of two .*, got 0",
    ),
    "alignment of three": (key("general.alignment", U32, struct.pack("<I", 12)), r"general.alignment must .*, got 12"),
    "alignment as text": (key("general.alignment", STRING, string("32")), r"general.alignment must be a power of two"),
    "no dimensions": (tensor("w", []), r"tensor w must have 1 to 4 dimensions, got 0"),
    "five dimensions": (tensor("w", [1] * 5), r"tensor w must have 1 to 4 dimensions, got 5"),
    "zero dimension": (tensor("w", [32, 0]), r"tensor w has dimension 1 of 0"),
    "product of dimensions wraps": (tensor("w", [2**32, 2**32]), r"tensor w has dimension 1 of 4294967296"),
    "unknown tensor type": (tensor("w", [32], 999), r"tensor w has ggml type 999, which this runtime does not read"),
    "rows that are no blocks": (tensor("w", [33, 2], 8), r"tensor w has rows of 33 values, .* multiple of 32 for Q8_0"),
    "tensor past the end": (
        tensor("w", [32, 64]),
        r"offset 0 with 8192 bytes: .* the 4096 data bytes",
    ),
    "offset past the end": (tensor("w", [32], 0, 2**63), r"tensor w lies at offset 9223372036854775808"),
    "offset wraps with its length": (tensor("w", [32], 0, 2**64 - 32), r"tensor w lies at offset 18446744073709551584"),
    "offset not aligned": (tensor("w", [32], 0, 8), r"tensor w lies at offset 8 .* must be aligned to 32"),
    "duplicate tensor": (also(tensor("w", [32]), tensor("w", [32])), r"tensor w appears twice"),
    "line break in a name": (also(key("a\nb", U8, b"\1"), key("a\nb", U8, b"\1")), r"metadata key a\?b appears twice"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file_is_refused(tmp_path: Path, case: str) -> None:
    change, pattern = MALFORMED[case]
    raw = RawGguf()
    change(raw)
    assert re.search(pattern, error_of(tmp_path / "bad.gguf", raw.to_bytes()))


def test_every_truncation_is_refused(make_tiny: MakeTiny) -> None:
    model = make_tiny("gemma3", n_layers=1, local=(True,))
    size = model.path.stat().st_size
    start = size - sum(w.size * 4 for w in model.weights.values())  # only padding lies between this and the data
    for length in [size - 1, *range(size - 1000, start, -997), *range(start, -1, -1)]:
        os.truncate(model.path, length)
        message = opening_error(model.path)
        assert re.search(r"truncated|not a GGUF|empty file|byte 8 counts|data bytes that follow", message), length


def test_missing_file_folder_and_empty_file(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"absent\.gguf: cannot open: No such file"):
        NativeModel(tmp_path / "absent.gguf")
    with pytest.raises(SessionError, match="not a regular file"):
        NativeModel(tmp_path)
    assert "empty file" in error_of(tmp_path / "empty.gguf", b"")


def test_version_2_opens(make_tiny: MakeTiny) -> None:
    model = make_tiny("llama")
    content = bytearray(model.path.read_bytes())
    content[4] = 2
    model.path.write_bytes(content)
    assert NativeModel(model.path).architecture == "llama"


# --- several parts ---------------------------------------------------------------------------------------------


def test_parts_are_one_model(make_tiny: MakeTiny) -> None:
    whole, first = make_tiny("llama"), make_tiny("llama", tensors_a_part=7)
    parts = sorted(first.path.parent.glob("*-of-*.gguf"))
    assert len(parts) == 5
    tokens = [1, 5, 9]
    with NativeSession(NativeModel(whole.path), threads=1) as a, NativeSession(NativeModel(first.path), threads=1) as b:
        np.testing.assert_array_equal(a.score(tokens), b.score(tokens))
    assert NativeModel(first.path).info.file_bytes == sum(part.stat().st_size for part in parts)


def test_parts_that_do_not_make_a_model(make_tiny: MakeTiny) -> None:
    first = make_tiny("llama", tensors_a_part=7).path
    parts = sorted(first.parent.glob("*-of-*.gguf"))
    with pytest.raises(SessionError, match="part 2 of 5 of a model; open the first part"):
        NativeModel(parts[1])
    renamed = first.with_name("other.gguf")
    renamed.write_bytes(first.read_bytes())
    with pytest.raises(SessionError, match=r"must end in -00001-of-00005\.gguf"):
        NativeModel(renamed)
    second = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(SessionError, match=r"must be part 1 of 5 .* but says 2 of 5"):
        NativeModel(first)
    parts[1].write_bytes(second[:-64])
    with pytest.raises(SessionError, match=r"00002-of-00005\.gguf: tensor .* must be aligned"):
        NativeModel(first)
    parts[1].unlink()
    with pytest.raises(SessionError, match=r"00002-of-00005\.gguf: cannot open"):
        NativeModel(first)


WRONG_MODELS = {
    "experts": ({"keys": {"expert_count": 8}}, {}, r"llama\.expert_count must be 0 to 0, got 8"),
    "not causal": ({"keys": {"attention.causal": False}}, {}, r"llama\.attention\.causal must be true"),
    "partial rotation": ({"keys": {"rope.dimension_count": 8}}, {}, r"rope\.dimension_count must be 16 to 16, got 8"),
    "longrope": (
        {"keys": {"rope.scaling.type": "longrope"}},
        {},
        r"rope\.scaling\.type must be none, linear or yarn, got \"longrope\"",
    ),
    "yarn that shrinks": (
        {"keys": {"rope.scaling.type": "yarn", "rope.scaling.factor": 0.5}},
        {},
        r"YaRN needs rope\.scaling\.factor >= 1",
    ),
    "window in llama": ({"keys": {"attention.sliding_window": 64}}, {}, r"sliding_window must be absent: llama"),
    "heads that do not divide": ({"n_heads": 3}, {}, r"head_count_kv must divide attention\.head_count, got 2 and 3"),
    "odd head size": ({"head_dim": 15}, {}, r"the head size must be even for RoPE, got 15"),
    "epsilon of NaN": ({"rms_eps": float("nan")}, {}, r"layer_norm_rms_epsilon must be one finite float"),
    "infinite base": ({"rope_base": float("inf")}, {}, r"rope\.freq_base must be one finite float"),
    "unknown architecture": ({"architecture": "mamba"}, {}, r"must be llama, .* or gemma3, got \"mamba\""),
    "missing tensor": (
        {},
        {b"blk.1.ffn_up.weight": b"blk.9.ffn_up.weight"},
        r"blk\.1\.ffn_up\.weight is missing",
    ),
    "tensor of another network": (
        {"tied": True, "qkv_bias": True},
        {},
        r"tensor blk\.0\.attn_k\.bias has no place in the llama architecture",
    ),
    "missing key": ({}, {b"llama.block_count": b"llama.block_cound"}, r"metadata lacks llama\.block_count"),
    "no architecture": (
        {},
        {b"general.architecture": b"general.architectura"},
        r"lacks general\.architecture",
    ),
    "bad frequency factors": ({"rope_freqs": (1.0,) * 7}, {}, r"rope_freqs\.weight must be \[1, 8\] .*, got \[1, 7\]"),
    "a frequency factor of zero": (
        {"rope_freqs": (1.0,) * 7 + (0.0,)},
        {},
        r"rope_freqs\.weight must hold positive numbers, got 0",
    ),
    "half a network's flags": (
        {"architecture": "gemma3", "window": 4, "keys": {"attention.sliding_window_pattern": [True, False]}},
        {},
        r"must be a period or 3 booleans, got an array of 2",
    ),
}


@pytest.mark.parametrize("case", WRONG_MODELS)
def test_model_that_does_not_run_is_refused(make_tiny: MakeTiny, tmp_path: Path, case: str) -> None:
    changes, edits, pattern = WRONG_MODELS[case]
    content = make_tiny("llama", **changes).path.read_bytes()
    for old, new in edits.items():
        assert len(old) == len(new)
        assert content.count(old) == 1
        content = content.replace(old, new)
    assert re.search(pattern, error_of(tmp_path / "wrong.gguf", content))


@pytest.mark.parametrize(
    ("key_name", "old", "new", "pattern"),
    [
        (
            "llama.embedding_length",
            64,
            96,
            r"token_embd\.weight must be \[80, 96\] .*, got \[80, 64\]",
        ),
        ("llama.feed_forward_length", 96, 64, r"blk\.0\.ffn_gate\.weight must be \[64, 64\] .*, got \[96, 64\]"),
        ("llama.block_count", 3, 2, r"tensor blk\.2\.attn_k\.weight has no place in the llama architecture"),
        ("llama.block_count", 3, 4, r"tensor blk\.3\.attn_norm\.weight is missing"),
        ("llama.block_count", 3, 2**31, r"llama\.block_count must be 1 to 4096, got 2147483648"),
        ("llama.attention.head_count", 4, 8, r"blk\.0\.attn_q\.weight must be \[128, 64\]"),
        ("llama.attention.head_count_kv", 2, 0, r"head_count_kv must be 1 to 4096, got 0"),
        ("llama.context_length", 512, 0, r"llama\.context_length must be 1 to \d+, got 0"),
    ],
)
def test_shapes_that_disagree_with_the_metadata(
    make_tiny: MakeTiny, tmp_path: Path, key_name: str, old: int, new: int, pattern: str
) -> None:
    content = make_tiny("llama").path.read_bytes()
    entry = string(key_name) + struct.pack("<II", U32, old)
    assert content.count(entry) == 1
    content = content.replace(entry, entry[:-4] + struct.pack("<I", new))
    assert re.search(pattern, error_of(tmp_path / "wrong.gguf", content))


def test_norm_of_another_type_is_refused(tmp_path: Path, make_tiny: MakeTiny) -> None:
    content = make_tiny("llama").path.read_bytes()
    entry = string("output_norm.weight") + struct.pack("<IQI", 1, 64, 0)
    assert content.count(entry) == 1
    content = content.replace(entry, entry[:-4] + struct.pack("<I", 1))
    assert "output_norm.weight must be F32, got F16" in error_of(tmp_path / "wrong.gguf", content)
