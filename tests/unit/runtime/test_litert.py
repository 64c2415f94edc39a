"""LiteRtSession: chunks, rewinding, the end of the context, and files that are not what they seem."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from attar.engine.checkpoint import params_from_tensors, save_model
from attar.engine.gguf_names import hf_shapes
from attar.engine.presets import PRESETS
from attar.export.tflite_emitter import export_tflite
from attar.runtime.litert import LiteRtSession, plan_chunks
from attar.runtime.session import Session, SessionError, open_session

CONTEXT = 30
TOKENS = np.random.default_rng(2).integers(0, 512, CONTEXT).tolist()


@pytest.fixture(scope="module", params=[256, 7], ids=["one cache size", "growing caches"])
def model_file(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A Gemma 2 of two layers, one local with a window of 8, with prefill_4, prefill_16 and score_30.

    With growing caches there are also c8_prefill_4 and c8_decode.
    """
    folder = tmp_path_factory.mktemp("litert")
    config = PRESETS["tiny-gemma2"].replace(num_hidden_layers=2, layer_types=("sliding_attention", "full_attention"))
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in hf_shapes(config).items()}
    save_model(folder / "model", config, params_from_tensors(config, tensors))
    result = export_tflite(folder / "model", folder / "m.tflite", "fp32", CONTEXT, (4, 16), request.param)
    return result.path


@pytest.fixture
def session(model_file: Path) -> Iterator[Session]:
    with open_session(model_file, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(model_file: Path) -> np.ndarray:
    """Logits after each token, one decode step at a time."""
    with LiteRtSession.open(model_file, threads=1) as opened:
        return np.stack([opened.decode(token) for token in TOKENS])


def assert_close(actual: np.ndarray, desired: np.ndarray) -> None:
    np.testing.assert_allclose(actual, desired, atol=2e-5)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 6, 17, 18, 22, 29, 30])
def test_chunked_prefill_equals_decoding_one_by_one(session: Session, expected: np.ndarray, length: int) -> None:
    """Lengths on both sides of each chunk; 29 and 30 need a padded chunk that would pass the end of the cache."""
    assert_close(session.prefill(TOKENS[:length]), expected[length - 1])
    assert session.position == length
    if length < CONTEXT:
        assert_close(session.decode(TOKENS[length]), expected[length])


@pytest.mark.parametrize("split", [1, 3, 9, 25, 29])
def test_score_continues_a_sequence(session: Session, expected: np.ndarray, split: int) -> None:
    assert_close(session.score(TOKENS[:split]), expected[:split])
    assert_close(session.score(TOKENS[split:]), expected[split:])


def test_rewind_forgets_what_came_after(session: Session, expected: np.ndarray) -> None:
    session.prefill(TOKENS[:12])
    session.prefill([7] * 15)
    session.rewind(12)
    assert session.position == 12
    assert_close(session.prefill(TOKENS[12:20]), expected[19])
    session.rewind(0)
    assert_close(session.prefill(TOKENS[:3]), expected[2])


def test_caches_start_small_where_the_file_has_small_ones(session: Session, model_file: Path) -> None:
    small = session.memory().cache_bytes
    session.prefill(TOKENS[:20])
    large = session.memory().cache_bytes
    session.rewind(0)
    assert session.memory().cache_bytes == small
    assert large is not None
    assert small in (large, large * 8 // CONTEXT)
    families = {key for key in Interpreter(str(model_file)).get_signature_list() if key.startswith("c8_")}
    assert (small < large) == (families == {"c8_decode", "c8_prefill_4"})


def test_rewind_is_checked(session: Session) -> None:
    session.prefill(TOKENS[:4])
    with pytest.raises(SessionError, match="between 0 and the 4 tokens held, got 5"):
        session.rewind(5)


def test_requests_that_do_not_fit_change_nothing(session: Session, expected: np.ndarray) -> None:
    session.prefill(TOKENS[:10])
    with pytest.raises(SessionError, match=r"holds 30 tokens, got 10 \+ 21"):
        session.prefill([1] * 21)
    with pytest.raises(SessionError, match="below the vocabulary's 512, got 512"):
        session.prefill([1, 512])
    with pytest.raises(SessionError, match="at least one token"):
        session.prefill([])
    assert_close(session.decode(TOKENS[10]), expected[10])


def test_a_smaller_context_may_be_asked_for(model_file: Path) -> None:
    with LiteRtSession.open(model_file, context_length=5) as session:
        session.prefill(TOKENS[:5])
        with pytest.raises(SessionError, match="holds 5 tokens"):
            session.decode(1)
    with pytest.raises(SessionError, match="between 1 and the file's 30, got 31"):
        LiteRtSession.open(model_file, context_length=31)


def test_memory_counts_file_and_caches(session: Session, model_file: Path) -> None:
    session.prefill(TOKENS[:20])  # where caches grow, they have done so now
    usage = session.memory()
    assert usage.weights_bytes == model_file.stat().st_size
    assert usage.cache_bytes == 2 * 2 * 2 * CONTEXT * 16 * 4  # layers, k and v, KV heads, positions, head_dim, bytes


def test_a_closed_session_says_so(model_file: Path) -> None:
    session = LiteRtSession.open(model_file)
    session.close()
    session.close()
    for request in (lambda: session.decode(1), lambda: session.rewind(0), session.memory):
        with pytest.raises(SessionError, match="closed"):
            request()


def test_opening_is_silent(model_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with LiteRtSession.open(model_file) as session:
        session.decode(1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_cut_off_files_are_refused(model_file: Path, tmp_path: Path, kept: float) -> None:
    data = model_file.read_bytes()
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(SessionError, match=r"cut\.tflite: "):
        LiteRtSession.open(cut)


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.tflite"
    other.write_bytes(b"GGUF" * 100)
    with pytest.raises(SessionError, match=r"not a \.tflite file: bytes 4 to 7 must be 'TFL3', got b'GGUF'"):
        LiteRtSession.open(other)
    with pytest.raises(SessionError, match="No such file"):
        LiteRtSession.open(tmp_path / "absent.tflite")


def test_corrupt_flatbuffers_are_refused(model_file: Path, tmp_path: Path) -> None:
    data = bytearray(model_file.read_bytes())
    data[8:4096] = b"\xff" * 4088
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(data)
    with pytest.raises(SessionError, match=r"bad\.tflite: "):
        LiteRtSession.open(bad)


@pytest.mark.parametrize(
    ("count", "lengths", "expected_chunks"),
    [
        (0, [32, 128], []),
        (1, [32, 128], [1]),
        (2, [32, 128], [1, 1]),
        (3, [32, 128], [32]),
        (33, [32, 128], [32, 1]),
        (300, [32, 128], [128, 128, 32, 32]),
        (5, [], [1] * 5),
    ],
)
def test_plan_chunks(count: int, lengths: list[int], expected_chunks: list[int]) -> None:
    assert plan_chunks(count, lengths) == expected_chunks
