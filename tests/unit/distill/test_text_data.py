"""Plain text as windows that count every token once, and mixtures of files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attar.distill.config import TrainConfig
from attar.distill.data import DataError, DataSet, Limits, Windows, load_examples, load_mixture
from attar.distill.examples import StoredExamples, example_lengths
from attar.distill.mixture import Mixture
from attar.distill.run_folder import RunError, read_metrics
from attar.distill.trainer import train
from attar.engine.tokenizer import Tokenizer

EOS = 2


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


TEXT = "It was the best of times, it was the worst of times; ünïcode too."


def windows_of(path: Path, tokenizer: Tokenizer, windows: Windows) -> DataSet:
    return load_examples(path, tokenizer, Limits(10, 10, windows=windows))


@pytest.mark.parametrize(("tokens", "overlap"), [(16, 1), (16, 8), (2, 1), (200, 100), (7, 6)])
def test_every_token_but_the_first_counts_once(tmp_path: Path, tokenizer: Tokenizer, tokens: int, overlap: int) -> None:
    path = tmp_path / "d.txt"
    path.write_text(TEXT)
    data = windows_of(path, tokenizer, Windows(tokens, overlap))
    ids = [*tokenizer.encode(TEXT, add_special=True), EOS]
    assert np.concatenate([e.completion for e in data.examples]).tolist() == ids[1:]
    start = 1
    for example in data.examples:
        context = ids[max(0, start - overlap) : start]
        assert example.prompt.tolist() == context
        assert len(example.prompt) + len(example.completion) <= tokens
        start += len(example.completion)
    sizes = [example.text_size for example in data.examples if example.text_size]
    assert sum(size.num_bytes for size in sizes) == len(TEXT.encode())
    assert sum(size.num_words for size in sizes) == len(TEXT.split())
    assert data.num_texts == len(data.examples)


def test_a_document_that_is_scored_does_not_end(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_rows(tmp_path / "d.jsonl", [{"text": "ab"}, {"text": "<eos>c"}])
    whole, other = windows_of(path, tokenizer, Windows(16, 8, ended=False)).examples
    assert whole.completion.tolist() == tokenizer.encode("ab")
    assert other.completion.tolist() == [EOS, *tokenizer.encode("c")]  # as the text says, and no end is cut off
    assert (whole.reference, other.line) == ("ab", 2)


@pytest.mark.parametrize("lengths", [(1, 1), (8, 8), (8, 0)])
def test_windows_that_make_no_sense(lengths: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="overlap must be at least 1 and below the window"):
        Windows(*lengths)


def test_large_data_is_kept_on_the_disk(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = write_rows(tmp_path / "a.jsonl", [{"prompt": "é" * n, "completion": "x" * n} for n in range(1, 9)])
    (tmp_path / "b.txt").write_text(TEXT)
    arguments = [str(pairs), str(tmp_path / "b.txt")], None, tokenizer, Limits(20, 20, windows=Windows(8))
    held = load_mixture(*arguments)
    monkeypatch.setattr("attar.distill.data.STORED_BYTES", 0)
    stored = load_mixture(*arguments)
    assert isinstance(stored.examples, StoredExamples)
    assert (stored.files, stored.num_texts, len(stored.examples)) == (held.files, held.num_texts, len(held.examples))
    for actual, expected in zip(stored.examples, held.examples, strict=True):
        for field in dataclasses.fields(expected):
            np.testing.assert_array_equal(getattr(actual, field.name), getattr(expected, field.name))
    assert stored.examples[-1].reference == stored.examples[3:][-1].reference == held.examples[-1].reference
    np.testing.assert_array_equal(example_lengths(stored.examples), example_lengths(held.examples))
    with pytest.raises(IndexError, match="must be below"):
        stored.examples[len(held.examples)]


def test_a_mixture_reads_all_files_and_divides_a_patterns_weight(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name, count in (("a0", 1), ("a1", 3), ("b", 4)):
        write_rows(tmp_path / f"{name}.jsonl", [{"prompt": f"{name}{i}", "completion": "x"} for i in range(count)])
    patterns = [f"{tmp_path}/a?.jsonl", f"{tmp_path}/b.jsonl"]
    data = load_mixture(patterns, [1.0, 3.0], tokenizer, Limits(10, 10))
    assert [file.num_examples for file in data.files] == [1, 3, 4]
    assert data.weights == (0.25, 0.75, 3.0)
    assert [e.prompt_text for e in data.examples[:2]] == ["a00", "a10"]
    assert len({data.sha256, *(file.sha256 for file in data.files)}) == 4
    drawn = Mixture([1, 3, 4], data.weights, 0).draws(0, 400)
    assert sum(index >= 4 for index in drawn) == 300
    single = load_mixture(patterns[1:], None, tokenizer, Limits(10, 10))
    assert single.sha256 == data.files[2].sha256


@pytest.fixture
def settings(teacher_folder: Path) -> dict[str, Any]:
    return {
        "teacher": str(teacher_folder),
        "student_layers": (0,),
        "method": "pretrain",
        "max_new_tokens": 8,
        "batch_size": 2,
        "steps": 3,
        "learning_rate": 3e-3,
    }


def test_a_packed_run_on_text_and_pairs(tmp_path: Path, settings: dict[str, Any], data_file: Path) -> None:
    (tmp_path / "d.txt").write_text("\n\n".join([TEXT, TEXT[::-1]] * 3))
    config = TrainConfig(
        **settings,
        data=(str(tmp_path / "*.txt"), str(data_file)),
        data_weights=(0.8, 0.2),
        documents="blank-line",
        max_tokens=24,
        pack=True,
        pack_tokens=32,
        log=("tensorboard",),
    )
    train(config, tmp_path / "run")
    assert [path.name[:6] for path in (tmp_path / "run" / "tensorboard").iterdir()] == ["events"]
    steps = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train"]
    assert all(0.6 < line["row_utilization"] <= 1.0 for line in steps)
    assert all(line["completion_tokens"] > 20 for line in steps)


def test_what_plain_text_cannot_do_is_refused(tmp_path: Path, settings: dict[str, Any], data_file: Path) -> None:
    text = tmp_path / "d.txt"
    text.write_text(TEXT * 4)
    on_policy = {**settings, "method": "gkd", "data": str(text)}
    with pytest.raises(DataError, match=r"d\.txt: plain text has no prompts .*set lambda to 0"):
        train(TrainConfig(**on_policy), tmp_path / "a")
    with pytest.raises(DataError, match=r"max_tokens would do nothing: .*train\.jsonl holds no plain text"):
        train(TrainConfig(**settings, data=str(data_file), max_tokens=8), tmp_path / "b")
    with pytest.raises(RunError, match="max_tokens must be at most the context of 64"):
        train(TrainConfig(**settings, data=str(text), max_tokens=65), tmp_path / "c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ()}, "data must name at least one file"),
        ({"data_weights": (1.0, 2.0)}, "one of data_weights per entry of data, got 2 for a"),
        ({"data_weights": (0.0,)}, "data_weights must be positive"),
        ({"max_tokens": 1}, "max_tokens must be at least 2"),
        ({"pack_tokens": 64}, "pack_tokens is the length of packed rows"),
        ({"log": ("tensorbord",)}, "log must name tensorboard or wandb, got tensorbord"),
        ({"documents": "page"}, "documents must be one of file, blank-line"),
        ({"pack": True, "method": "gkd"}, r"samples of the student are not packed, and lambda is 0\.5"),
    ],
)
def test_configurations_that_make_no_sense(settings: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"data": "a", **settings, **change})


def test_a_configuration_with_several_files_reads_back(settings: dict[str, Any]) -> None:
    config = TrainConfig(**settings, data=("a", "b"), data_weights=(1.0, 2.0))
    raw = {key: list(value) if isinstance(value, tuple) else value for key, value in config.to_json().items()}
    assert TrainConfig.from_json(raw) == config
