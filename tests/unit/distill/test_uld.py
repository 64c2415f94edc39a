"""Distillation across vocabularies: alignment by hand, the loss against its definition, and a run that learns."""

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from attar.distill import projected_loss
from attar.distill.alignment import SharedTokens, align, shared_tokens
from attar.distill.config import TrainConfig
from attar.distill.data import DataError
from attar.distill.methods.gkd import Gkd
from attar.distill.methods.method import Labels
from attar.distill.methods.uld import Uld
from attar.distill.projected_loss import Head, HeadConfig
from attar.distill.run_folder import RunError, read_metrics
from attar.distill.trainer import train
from attar.engine.checkpoint import save_model
from attar.engine.config import ModelConfig
from attar.engine.transformer import init_params

END = 0


class Pieces:
    """A vocabulary of byte strings that takes the longest one first; id 0 ends."""

    def __init__(self, *pieces: str, blank_first: bool = False) -> None:
        self.pieces = [b"<end>", *(piece.encode("utf-8", "surrogateescape") for piece in pieces)]
        self.vocab_size, self.eos_token_ids = len(self.pieces), (END,)
        self.blank_first = blank_first

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        left, ids = text.encode(), []
        left = b" " + left if self.blank_first else left
        while left:
            found = max((p for p in self.pieces[1:] if left.startswith(p)), key=len)
            ids.append(self.pieces.index(found))
            left = left[len(found) :]
        return ids

    def token_bytes(self, token: int) -> bytes:
        return self.pieces[token]

    def is_end(self, token: int) -> bool:
        return token == END


def aligned(student: Pieces, teacher: Pieces, completion: Sequence[int], max_tokens: int = 20) -> tuple[Any, Any]:
    ids, positions = align(completion, student, teacher, max_tokens)  # type: ignore[arg-type]  # what align reads
    return ids, positions.tolist()


STUDENT = Pieces("The", " qu", "ick", " fox", ".")
TEACHER = Pieces("The", " quick", " f", "ox", ".")


def test_positions_behind_the_same_text_correspond() -> None:
    ids, positions = aligned(STUDENT, TEACHER, [1, 2, 3, 4, 5, END])
    assert ids == [1, 2, 3, 4, 5, END]
    assert positions == [0, 1, -1, 2, 4, 5]  # " qu" and "ick" are one token of the teacher, " fox" two


def test_one_vocabulary_corresponds_everywhere() -> None:
    assert aligned(STUDENT, STUDENT, [1, 2, 3, END]) == ([1, 2, 3, END], [0, 1, 2, 3])


def test_a_cut_completion_needs_no_end() -> None:
    assert aligned(STUDENT, TEACHER, [1, 2, 3]) == ([1, 2, END], [0, 1, -1])


def test_what_the_teacher_was_cut_to_is_not_compared_beyond() -> None:
    assert aligned(STUDENT, TEACHER, [1, 2, 3, 4, 5, END], max_tokens=3) == ([1, 2, 3], [0, 1, -1, 2, -1, -1])


def test_a_blank_that_a_tokenizer_adds_is_no_text() -> None:
    teacher = Pieces(" The", " quick", " f", "ox", ".", blank_first=True)
    assert aligned(STUDENT, teacher, [1, 2, 3, 4, END])[1] == [0, 1, -1, 2, 4]


def test_a_cut_character_ends_what_is_compared() -> None:
    half = "é".encode()[:1].decode("utf-8", "surrogateescape")
    student, teacher = Pieces("a", half, "b"), Pieces("a", "b")
    assert aligned(student, teacher, [1, 2, 3]) == ([1, END], [0, 1, -1])


def test_a_teacher_that_rewrites_text_is_compared_up_to_there() -> None:
    class Lower(Pieces):
        def encode(self, text: str, *, parse_special: bool) -> list[int]:
            return super().encode(text.lower(), parse_special=parse_special)

    assert aligned(Pieces("a", "B", "c"), Lower("a", "b", "c"), [1, 2, 3, END])[1] == [0, 1, -1, -1]


def test_tokens_are_shared_by_their_bytes_and_ends_as_such() -> None:
    theirs = Pieces(" f", ".", "The", "The")  # the last of two of the same bytes counts
    shared = shared_tokens(STUDENT, theirs, 7, 6)  # type: ignore[arg-type]  # what it reads; tables of 7 and 6 rows
    assert list(zip(shared.student.tolist(), shared.teacher.tolist(), strict=True)) == [(0, 0), (1, 4), (5, 2)]
    assert shared.student_others.tolist() == [2, 3, 4, 6]
    assert shared.teacher_others.tolist() == [1, 3, 5]


V, W = 9, 11
LABELS = Labels(jnp.zeros((2, 3), jnp.int32))
OURS = jax.random.normal(jax.random.key(0), (2, 3, V)) * 2
THEIRS = jax.random.normal(jax.random.key(1), (2, 3, W)) * 2


def ids(*values: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(values, np.int32)


SHARED = SharedTokens(ids(0, 2, 5, 7), ids(3, 0, 10, 1), ids(1, 3, 4, 6, 8), ids(2, 4, 5, 6, 7, 8, 9))


def softmax(logits: Any, temperature: float = 1.0) -> np.ndarray[Any, np.dtype[np.float64]]:
    p = np.exp(np.asarray(logits, np.float64) / temperature)
    return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperatures", [(1.0, None), (2.0, 0.5)])
def test_the_loss_is_its_definition(temperatures: tuple[float, float | None]) -> None:
    q, p = softmax(OURS, temperatures[0]), softmax(THEIRS, temperatures[1] or temperatures[0])
    rest_q, rest_p = q[..., SHARED.student_others], p[..., SHARED.teacher_others]
    q_shared = np.concatenate([q[..., SHARED.student], rest_q.sum(-1, keepdims=True)], -1)
    p_shared = np.concatenate([p[..., SHARED.teacher], rest_p.sum(-1, keepdims=True)], -1)
    filled = np.concatenate([rest_q, np.zeros((2, 3, 2))], -1)
    distance = np.abs(np.sort(filled)[..., ::-1] - np.sort(rest_p)[..., ::-1]).sum(-1)
    expected = (p_shared * np.log(p_shared / q_shared)).sum(-1) + distance
    gkd = Gkd(divergence="forward_kl", temperature=temperatures[0], teacher_temperature=temperatures[1])
    np.testing.assert_allclose(Uld(gkd, SHARED).loss(OURS, LABELS, THEIRS), expected, rtol=1e-4)


def test_the_gradient_is_that_of_finite_differences() -> None:
    def total(logits: jax.Array) -> jax.Array:
        return Uld(Gkd(), SHARED).loss(logits, LABELS, THEIRS).sum()

    gradient = jax.grad(total)(OURS)
    direction = jax.random.normal(jax.random.key(2), OURS.shape)
    slope = (total(OURS + 1e-2 * direction) - total(OURS - 1e-2 * direction)) / 2e-2
    assert float(jnp.vdot(gradient, direction)) == pytest.approx(float(slope), rel=2e-2)
    np.testing.assert_array_equal(jax.grad(lambda t: Uld(Gkd(), SHARED).loss(OURS, LABELS, t).sum())(THEIRS), 0.0)


def test_equal_vocabularies_give_gkd_and_equal_models_nothing() -> None:
    order = np.random.default_rng(0).permutation(V).astype(np.int32)
    whole = SharedTokens(np.arange(V, dtype=np.int32), order, ids(), ids())
    renamed = jnp.zeros_like(OURS).at[..., order].set(OURS)  # the same model, its tokens under other ids
    np.testing.assert_allclose(Uld(Gkd(), whole).loss(OURS, LABELS, renamed), 0.0, atol=1e-6)
    other = THEIRS[..., :V]
    expected = Gkd().loss(OURS, LABELS, other[..., order])
    np.testing.assert_allclose(Uld(Gkd(), whole).loss(OURS, LABELS, other), expected, rtol=1e-6)


def test_positions_are_worked_through_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = partial(jax.random.normal, dtype=jnp.float32)
    keys = jax.random.split(jax.random.key(3), 4)
    student, teacher = (
        Head(draw(keys[0], (2, 7, 4)), draw(keys[1], (V, 4))),
        Head(draw(keys[2], (2, 7, 5)), draw(keys[3], (W, 5))),
    )
    labels, weights = Labels(jnp.zeros((2, 7), jnp.int32)), jnp.full((2, 7), 0.1).at[1, 3].set(0.0)

    def gradient(chunk: int) -> Any:
        monkeypatch.setattr(projected_loss, "CHUNK_LOGITS", chunk)
        sizes = HeadConfig(None, None, V, W)

        def loss(head: Head) -> jax.Array:
            return projected_loss.projected_loss(Uld(Gkd(), SHARED).loss, sizes, head, teacher, labels, weights)

        return jax.value_and_grad(loss)(student)

    whole, parts = gradient(1 << 20), gradient(W)
    for left, right in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


ROWS = [{"prompt": f"say {word}:", "completion": word} for word in ("abab", "baba", "abba", "aabb", "bbaa", "abaa")]


def write_merged(folder: Path, merges: Iterable[tuple[str, str]]) -> Path:
    """Bytes and merged pairs of them, under other ids than the shared fixtures' bytes."""
    folder.mkdir()
    symbols = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True), *(a + b for a, b in merges)]
    model = tokenizers.Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=list(merges)))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(["</s>"])
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path, shape: ModelConfig) -> dict[str, Any]:
    """A teacher that learnt the rows, a student of another vocabulary that did not, and rows held out."""
    root = tmp_path_factory.mktemp("uld")
    for name, rows in (("train", ROWS[:4]), ("held_out", ROWS[4:])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run: dict[str, Any] = {
        "data": str(root / "train.jsonl"),
        "max_new_tokens": 8,
        "batch_size": 4,
        "prompt_buckets": 1,
        "learning_rate": 1e-2,
        "checkpoint_every": 100,
    }
    train(TrainConfig(**run, method="sft", student=str(teacher_folder), steps=40), root / "teacher")
    tokenizer = write_merged(root / "tokenizer", [("a", "b"), ("b", "a")])
    other = shape.replace(vocab_size=259, bos_token_id=None, eos_token_ids=(0,), pad_token_id=0)
    save_model(root / "student", other, init_params(other, jax.random.key(4)), tokenizer, {})
    uld = {"method": "uld", "teacher": str(root / "teacher" / "student"), "student": str(root / "student")}
    return {**run, **uld, "eval_data": str(root / "held_out.jsonl"), "steps": 30}


@pytest.mark.parametrize("on_policy_fraction", [0.0, 0.5])
def test_a_student_learns_from_a_teacher_of_another_vocabulary(
    tmp_path: Path, settings: dict[str, Any], on_policy_fraction: float
) -> None:
    train(TrainConfig(**settings, on_policy_fraction=on_policy_fraction), tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    first, last = (line["perplexity"] for line in lines if line["kind"] == "eval")
    assert last < 0.2 * first
    assert any(line["on_policy"] for line in lines if line["kind"] == "train") == (on_policy_fraction > 0)
    again = json.loads((tmp_path / "run" / "config.json").read_text())
    assert again["teacher_tokenizer_fingerprint"] != again["tokenizer_fingerprint"]


def changed(settings: dict[str, Any], **change: Any) -> TrainConfig:
    return TrainConfig(**{**settings, **change})


def test_what_cannot_work_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="or use method uld"):
        train(changed(settings, method="gkd"), tmp_path / "gkd")
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "abab"}\n' * 4)
    with pytest.raises(DataError, match="plain text"):
        train(changed(settings, data=str(text), on_policy_fraction=0.0), tmp_path / "text")
    with pytest.raises(ValueError, match="uld is for a student of another vocabulary"):
        changed(settings, student=None, student_layers=(0,))
    with pytest.raises(ValueError, match="got method uld; leave them out"):
        changed(settings, targets="somewhere")
    with pytest.raises(ValueError, match="needs method gkd and a lambda above 0, got uld"):
        changed(settings, reward="rougeL")
