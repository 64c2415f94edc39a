"""Sessions, samplers and the binding itself."""

from __future__ import annotations

import ctypes
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pytest

from attar.runtime import _native
from attar.runtime.native import NativeModel, NativeSession, kernels_name, library_version
from attar.runtime.session import NativeOptions, SessionError, open_session

if TYPE_CHECKING:
    from tests.unit.runtime.conftest import MakeTiny

HEADER = Path(__file__).parents[3] / "runtime" / "include" / "attar.h"

# --- the binding and the header -------------------------------------------------------------------------------

_SCALARS = {
    "attar_status": ctypes.c_int, "bool": ctypes.c_bool, "float": ctypes.c_float, "int32_t": ctypes.c_int32,
    "size_t": ctypes.c_size_t, "uint64_t": ctypes.c_uint64, "char": ctypes.c_char,
}  # fmt: skip
_STRUCTURES = {
    "attar_error": _native.AttarError,
    "attar_model_info": _native.AttarModelInfo,
    "attar_session_params": _native.AttarSessionParams,
    "attar_memory": _native.AttarMemory,
    "attar_sampler_params": _native.AttarSamplerParams,
}
_HANDLES = {"attar_model", "attar_session", "attar_sampler", "attar_tokenizer"}


def header_text() -> str:
    return re.sub(r"//[^\n]*", "", HEADER.read_text())


def ctype(declaration: str, *, result: bool = False, sized: bool = False) -> Any:
    """The ctypes type of "const char *path" and the like; `result` for return types, `sized` before a length."""
    stars = declaration.count("*")
    base = re.sub(r"\bconst\b|\*", " ", declaration).split()[0]
    if base == "void":
        return None
    if base in _HANDLES:
        return ctypes.c_void_p if stars == 1 else ctypes.POINTER(ctypes.c_void_p)
    if base == "char" and stars:
        return ctypes.c_void_p if result and sized else ctypes.c_char_p
    plain = _STRUCTURES.get(base) or _SCALARS[base]
    return ctypes.POINTER(plain) if stars else plain


def test_signatures_are_those_of_the_header() -> None:
    found = re.findall(r"ATTAR_API\s+([\w\s]+?[\s*]+)(attar_\w+)\(([^)]*)\)", header_text())
    assert {name for _, name, _ in found} == set(_native.SIGNATURES)
    for result, name, arguments in found:
        listed = [] if arguments.strip() == "void" else [" ".join(a.split()) for a in arguments.split(",")]
        sized = any(a.endswith("*length") for a in listed)  # text that is not NUL-terminated
        expected = (ctype(result, result=True, sized=sized), tuple(ctype(a) for a in listed))
        assert _native.SIGNATURES[name] == expected, name


@pytest.mark.parametrize("name", _STRUCTURES)
def test_structures_are_those_of_the_header(name: str) -> None:
    bodies = {end: body for body, end in re.findall(r"typedef struct \{([^}]*)\} (\w+);", header_text())}
    fields = []
    for line in filter(None, (part.strip() for part in bodies[name].split(";"))):
        base, names = line.split(None, 1)
        for declared in names.split(","):
            match = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", declared.strip())
            assert match is not None
            kind = _SCALARS[base]
            fields.append((match[1], kind * int(match[2]) if match[2] else kind))
    assert tuple(fields) == _STRUCTURES[name]._fields_


def test_status_numbers_are_those_of_the_header() -> None:
    found = dict(re.findall(r"(ATTAR_(?:OK|ERROR_\w+)) = (\d+)", header_text()))
    assert {name: int(number) for name, number in found.items()} == {
        name: value for name, value in vars(_native).items() if re.fullmatch(r"ATTAR_(OK|ERROR_\w+)", name)
    }


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"libattar\.\w+ is not in .*; build it by installing attar"):
        _native.find_library([str(tmp_path)])


def test_the_library_is_found_in_any_folder_of_the_package(tmp_path: Path) -> None:
    (tmp_path / _native.library_name()).touch()
    assert _native.find_library([str(tmp_path / "source"), str(tmp_path)]).parent == tmp_path


def test_version_and_kernels() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", library_version())
    assert kernels_name() in {"avx512", "avx2", "scalar"}


# --- models ---------------------------------------------------------------------------------------------------


def test_info_and_metadata(make_tiny: MakeTiny) -> None:
    tiny = make_tiny("gemma3", types="Q8_0")
    model = NativeModel(tiny.path)
    info = model.info
    assert (model.architecture, info.n_vocab, info.n_embd, info.n_ff, info.n_layers) == ("gemma3", 80, 64, 96, 7)
    assert (info.n_heads, info.n_kv_heads, info.head_dim, info.sliding_window, info.n_local_layers) == (4, 1, 16, 8, 6)
    assert info.n_parameters == sum(w.size for w in tiny.weights.values())
    assert info.file_bytes == tiny.path.stat().st_size
    assert info.bos_token == -1
    assert model.metadata("general.architecture") == "gemma3"
    assert model.metadata("gemma3.block_count") is None
    assert model.metadata("absent") is None


# --- sessions -------------------------------------------------------------------------------------------------


def test_open_session_drives_a_gguf(make_tiny: MakeTiny) -> None:
    with open_session(make_tiny("llama").path, context_length=32, threads=2) as session:
        assert (session.vocab_size, session.context_length, session.position) == (80, 32, 0)
        logits = session.prefill([1, 2, 3])
        assert (logits.shape, logits.dtype, session.position) == ((80,), np.float32, 3)
        assert session.score([4, 5]).shape == (2, 80)
        assert session.decode(6).shape == (80,)
        assert session.position == 6
    with pytest.raises(SessionError, match="the session is closed"):
        session.decode(1)


def test_a_session_outlives_the_name_of_its_model(make_tiny: MakeTiny) -> None:
    session = NativeSession(NativeModel(make_tiny("llama").path), threads=1)
    assert np.isfinite(session.prefill([1, 2])).all()
    session.close()
    session.close()


@pytest.mark.parametrize(
    ("tokens", "pattern"),
    [
        ([], "at least one token"),
        ([1, 80], r"token ids must be 0 to 79, got 80 at index 1"),
        ([-1], r"token ids must be 0 to 79, got -1 at index 0"),
        ([2**32 + 1], r"token ids must be 0 to 79"),
        ([1] * 31, r"31 tokens do not fit: the context holds 32 and 2 are in use"),
    ],
)
def test_a_refused_call_leaves_the_sequence_alone(make_tiny: MakeTiny, tokens: list[int], pattern: str) -> None:
    with open_session(make_tiny("gemma2").path, context_length=32, threads=1) as session:
        session.prefill([3, 4])
        for call in (session.prefill, session.score):
            with pytest.raises(SessionError, match=pattern):
                call(tokens)
        assert session.position == 2
        after = session.decode(5)
    with open_session(make_tiny("gemma2").path, context_length=32, threads=1) as fresh:
        np.testing.assert_allclose(after, fresh.prefill([3, 4, 5]), atol=1e-3)


def test_rewind_gives_the_logits_of_the_shorter_sequence(make_tiny: MakeTiny) -> None:
    tiny = make_tiny("gemma3")
    tokens = np.random.default_rng(0).integers(0, 80, 60).tolist()
    for keep in (60, 57, 56):  # a ring takes back any batch: 4 tokens
        with NativeSession(NativeModel(tiny.path), threads=1, batch_tokens=4) as session:
            session.prefill(tokens)
            session.rewind(keep)
            again = session.score([7, 8, 9])
        np.testing.assert_allclose(again, tiny.logits([*tokens[:keep], 7, 8, 9])[keep:], atol=1e-3)


def test_rewind_refuses_what_the_ring_has_lost(make_tiny: MakeTiny) -> None:
    tiny = make_tiny("gemma3")
    tokens = np.random.default_rng(0).integers(0, 80, 300).tolist()
    with NativeSession(NativeModel(tiny.path), threads=1, batch_tokens=4) as session:  # a ring of 128 rows, window 8
        session.prefill(tokens)
        with pytest.raises(SessionError, match="cannot rewind to 150: local layers keep 128 positions"):
            session.rewind(150)
        assert session.position == 300
        session.rewind(250)
        np.testing.assert_allclose(session.decode(7), tiny.logits([*tokens[:250], 7])[-1], atol=1e-3)
        with pytest.raises(SessionError, match="a rewind must keep 0 to 251 tokens, got 252"):
            session.rewind(252)
        session.rewind(0)
        np.testing.assert_allclose(session.score(tokens[:30]), tiny.logits(tokens[:30]), atol=1e-3)


def test_global_layers_rewind_anywhere(make_tiny: MakeTiny) -> None:
    tiny = make_tiny("llama")
    with NativeSession(NativeModel(tiny.path), threads=1, batch_tokens=4) as session:
        session.prefill(list(range(50)))
        session.rewind(3)
        np.testing.assert_allclose(session.decode(9), tiny.logits([0, 1, 2, 9])[-1], atol=1e-3)


# --- a full context -------------------------------------------------------------------------------------------


def test_a_sliding_session_keeps_its_first_tokens_and_forgets_the_older_half(make_tiny: MakeTiny) -> None:
    tiny = make_tiny("llama", n_layers=1)  # one layer: keys depend on their own token and position alone
    tokens = np.random.default_rng(0).integers(0, 80, 100).tolist()
    options = NativeOptions(overflow="slide", keep_tokens=4)
    with NativeSession(NativeModel(tiny.path), context_length=64, threads=1, options=options) as session:
        session.prefill(tokens[:60])
        assert session.position == 60
        logits = session.score(tokens[60:70])  # the first 4 stay, 30 of the others go
        assert session.position == 40
    held = [*tokens[:4], *tokens[34:70]]
    np.testing.assert_allclose(logits, tiny.logits(held)[-10:], rtol=0, atol=2e-2)  # keys are rounded twice


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen3"])
@pytest.mark.parametrize("cache", ["f16", "int8"])
def test_a_sliding_session_goes_on_without_end(make_tiny: MakeTiny, family: str, cache: Literal["f16", "int8"]) -> None:
    tiny = make_tiny(family, types="Q8_0")
    options = NativeOptions(cache_type=cache, overflow="slide", keep_tokens=3)
    with NativeSession(NativeModel(tiny.path), context_length=40, threads=2, options=options) as session:
        for token in range(300):
            assert np.isfinite(session.decode(token % 80)).all()
            assert session.position <= 40
        with pytest.raises(SessionError, match="38 tokens do not fit: the context holds 40, of which the first 3"):
            session.prefill([1] * 38)
        assert np.isfinite(session.prefill([1] * 37)).all()


# --- memory ---------------------------------------------------------------------------------------------------


def test_local_layers_cost_the_same_at_any_context(make_tiny: MakeTiny) -> None:
    model = NativeModel(make_tiny("gemma3", n_ctx_train=1024).path)  # 6 local layers, 1 global; K = 1, H = 16
    ring = 384  # window 8 + batch 256 + a tile of 16, in whole chunks of 128
    for cache, row in (("f16", 2 * 2 * 16), ("int8", 2 * (16 + 4))):  # keys and values, with a scale each for int8
        options = NativeOptions(cache_type=cast(Literal["f16", "int8"], cache))
        for context in (512, 1024):
            assert model.plan(context, threads=1, options=options).cache_bytes == (6 * ring + context) * row
        assert model.plan(100, threads=1, options=options).cache_bytes == 7 * 128 * row  # no more rows than positions
    assert model.plan(100, threads=1).weights_bytes == model.info.weight_bytes  # float matrices stay as they are


def test_planned_weights_are_packed_ones(make_tiny: MakeTiny) -> None:
    model = NativeModel(make_tiny("llama", types="Q4_0").path)
    planned = model.plan(100).weights_bytes or 0
    # Quants and scales keep their size; vectors and tiles are rounded up to 64 bytes, 80 and 96 rows are whole tiles.
    assert model.info.weight_bytes <= planned <= model.info.weight_bytes * 1.05


def test_plan_is_what_the_session_holds(make_tiny: MakeTiny) -> None:
    model = NativeModel(make_tiny("gemma2").path)
    with NativeSession(model, context_length=200, threads=2) as session:
        assert session.memory() == model.plan(200, threads=2)


def test_memory_budget(make_tiny: MakeTiny) -> None:
    model = NativeModel(make_tiny("llama").path)
    needed = sum(part or 0 for part in dataclasses.astuple(model.plan(512, threads=1)))
    NativeSession(model, context_length=512, threads=1, memory_budget_bytes=needed).close()
    with pytest.raises(SessionError) as caught:
        NativeSession(model, context_length=512, threads=1, memory_budget_bytes=needed - 1)
    match = re.search(rf"needs {needed} bytes .* over the budget of {needed - 1}; .* at most (\d+)", str(caught.value))
    assert match is not None
    NativeSession(model, context_length=int(match[1]), threads=1, memory_budget_bytes=needed - 1).close()
    with pytest.raises(SessionError, match="no context fits"):
        NativeSession(model, context_length=512, threads=1, memory_budget_bytes=1000)


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"context_length": 513}, r"n_ctx must be 0 \(default\) to 512, got 513"),
        ({"context_length": 0}, "context_length must be at least 1, got 0"),
        ({"threads": -1}, "threads must be at least 1, got -1"),
        ({"threads": 100000}, r"n_threads must be 0 \(default\) to 256"),
        ({"batch_tokens": 1 << 20}, r"n_batch must be 0 \(default\) to 4096"),
        ({"memory_budget_bytes": 0}, "memory_budget_bytes must be at least 1"),
        ({"options": NativeOptions(activation_bits=4)}, r"activation_bits must be 8 \(or 0\) or 16, got 4"),
        (
            {"context_length": 64, "options": NativeOptions(overflow="slide", keep_tokens=33)},
            r"n_keep must be 0 to half of the context \(32\), got 33",
        ),
    ],
)
def test_settings_out_of_range(make_tiny: MakeTiny, settings: dict[str, Any], pattern: str) -> None:
    with pytest.raises(SessionError, match=pattern):
        NativeSession(NativeModel(make_tiny("llama").path), **settings)
