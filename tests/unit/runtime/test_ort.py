"""OrtSession: every way of reading tokens gives the same logits, and bad files and requests get one line."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from attar.engine.checkpoint import save_model
from attar.engine.presets import PRESETS
from attar.engine.transformer import init_params
from attar.export.onnx_emitter import export_onnx
from attar.runtime import ort
from attar.runtime.ort import OrtSession
from attar.runtime.session import SessionError, open_session

TOKENS = [int(i) for i in np.random.default_rng(0).integers(0, 512, 30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3 with a window of 8, exported for 64 positions."""
    root, config = tmp_path_factory.mktemp("ort"), PRESETS["tiny-gemma3"]
    params = jax.tree.map(lambda w: w * 8, init_params(config, jax.random.key(0)))
    save_model(root / "model", config, params)
    return export_onnx(root / "model", root / "onnx", context_length=64).path


@pytest.fixture
def session(folder: Path) -> OrtSession:
    return OrtSession.open(folder, threads=1)


def test_open_session_picks_onnxruntime_for_folder_and_file(folder: Path) -> None:
    for path in (folder, folder / "model.onnx"):
        with open_session(path, threads=1) as session:
            assert isinstance(session, OrtSession)
            assert (session.vocab_size, session.context_length, session.position) == (512, 64, 0)


def test_prefill_and_decode_equal_score(session: OrtSession) -> None:
    expected = session.score(TOKENS)
    session.rewind(0)
    np.testing.assert_allclose(session.prefill(TOKENS[:11]), expected[10], atol=1e-4)
    np.testing.assert_allclose(session.prefill(TOKENS[11:20]), expected[19], atol=1e-4)
    decoded = np.stack([session.decode(token) for token in TOKENS[20:]])
    np.testing.assert_allclose(decoded, expected[20:], atol=1e-4)
    assert session.position == 30


def test_pieces_of_a_long_prompt_equal_the_whole(session: OrtSession, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = session.score(TOKENS)
    session.rewind(0)
    monkeypatch.setattr(ort, "_CHUNK_TOKENS", 7)
    np.testing.assert_allclose(session.score(TOKENS), expected, atol=1e-4)
    session.rewind(0)
    np.testing.assert_allclose(session.prefill(TOKENS), expected[-1], atol=1e-4)


def test_rewinding_forgets_what_was_dropped(session: OrtSession) -> None:
    session.prefill(TOKENS[:10])
    expected = session.score(TOKENS[10:20])
    session.rewind(10)
    session.score([7] * 20)
    session.rewind(10)
    np.testing.assert_allclose(session.score(TOKENS[10:20]), expected, atol=1e-5)


def test_logits_of_an_earlier_call_stay_as_they_were(session: OrtSession) -> None:
    first = session.prefill(TOKENS[:5])
    copy = first.copy()
    session.decode(3)
    np.testing.assert_array_equal(first, copy)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "at least one token"),
        ([512], "below the vocabulary's 512, got 512"),
        ([-1], "below the vocabulary's 512, got -1"),
        ([1] * 61, r"holds 64 tokens, got 4 \+ 61"),
    ],
)
def test_a_bad_request_leaves_the_sequence_unchanged(session: OrtSession, tokens: list[int], message: str) -> None:
    session.prefill(TOKENS[:4])
    expected = session.decode(5)
    session.rewind(4)
    with pytest.raises(SessionError, match=message):
        session.prefill(tokens)
    assert session.position == 4
    np.testing.assert_array_equal(session.decode(5), expected)


@pytest.mark.parametrize("position", [-1, 5])
def test_rewind_checks_the_position(session: OrtSession, position: int) -> None:
    session.prefill(TOKENS[:4])
    with pytest.raises(SessionError, match=f"between 0 and the 4 tokens held, got {position}"):
        session.rewind(position)


def test_the_context_can_be_filled_to_the_last_token(session: OrtSession) -> None:
    session.prefill(TOKENS[:1] * 63)
    assert np.isfinite(session.decode(0)).all()
    assert session.position == session.context_length


def test_memory_counts_weights_and_cache(folder: Path) -> None:
    with OrtSession.open(folder, context_length=32, threads=1) as session:
        usage = session.memory()
        config = PRESETS["tiny-gemma3"]
        assert usage.cache_bytes == 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 32 * 4
        assert usage.weights_bytes == sum(file.stat().st_size for file in folder.glob("model.onnx*"))


@pytest.mark.parametrize("context_length", [0, 65])
def test_a_context_beyond_the_file_is_refused(folder: Path, context_length: int) -> None:
    with pytest.raises(SessionError, match=f"between 1 and the file's 64, got {context_length}"):
        OrtSession.open(folder, context_length=context_length)


def test_a_closed_session_says_so(session: OrtSession) -> None:
    session.close()
    with pytest.raises(SessionError, match="closed"):
        session.decode(1)


def one_line(error: pytest.ExceptionInfo[SessionError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_damaged_files_are_named(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "model.onnx").read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "noise": b"\xff" * 1000, "empty": b""}.items():
        file = tmp_path / f"{name}.onnx"
        file.write_bytes(content)
        with pytest.raises(SessionError) as error:
            OrtSession.open(file)
        assert str(file) in one_line(error)


def test_missing_weights_are_named(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes((folder / "model.onnx").read_bytes())
    with pytest.raises(SessionError, match=r"model\.onnx\.data") as error:
        OrtSession.open(file)
    one_line(error)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"model\.onnx"):
        OrtSession.open(tmp_path)


def test_another_kind_of_graph_is_refused(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "other", value[:1], value[1:])
    file = tmp_path / "other.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(file))
    with pytest.raises(SessionError, match="not an ONNX decoder written by attar"):
        OrtSession.open(file)
