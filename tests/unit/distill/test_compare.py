"""Comparison of run folders written by hand: pairs, what is left out, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attar.distill.bootstrap import paired_bootstrap
from attar.distill.compare import CompareError, Comparison, compare_runs, read_run
from attar.distill.example_results import ExampleResult, results_path, write_results

CONFIG = {"eval_data_sha256": "a" * 64, "tokenizer_fingerprint": "t", "teacher_fingerprint": "m", "max_new_tokens": 8}
WORDS = "red green blue black white grey pink brown".split()
EIGHT_LINES = range(1, 9)


def write_run(folder: Path, seed: int, lines: range = EIGHT_LINES, step: int = 10, **config: Any) -> Path:
    """A run whose evaluation of a step holds random scores and answers."""
    rng = np.random.default_rng(seed)
    results = []
    for line in lines:
        words = [" ".join(rng.choice(WORDS, 6)) for _ in range(2)]
        scores = {"nll": rng.random(), "kl_student_teacher_data": rng.random(), "exact": float(rng.integers(2))}
        results.append(ExampleResult(str(line), 3 + line, scores, " ".join(WORDS[:6]), words[0], words[1]))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    metrics = [{"step": 1, "kind": "train", "loss": 1.0}, {"step": step, "kind": "eval", "scores": {}}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    write_results(results_path(folder, step), results)
    return folder


def compare(*folders: Path, step: int | None = None) -> Comparison:
    return compare_runs([read_run(folder) for folder in folders], step)


def test_scores_are_paired_by_example(tmp_path: Path) -> None:
    # The second run's file holds other lines as well, in another order.
    first = write_run(tmp_path / "a", 1)
    second = write_run(tmp_path / "b", 2, range(12, 2, -1), step=20)
    found = compare(first, second)
    assert (found.num_shared, found.num_examples, found.steps) == (6, (8, 10), (10, 20))
    nlls = [
        [json.loads(line)["scores"]["nll"] for line in results_path(folder, step).read_text().splitlines()]
        for folder, step in ((first, 10), (second, 20))
    ]
    ours, theirs = np.array(nlls[0][2:]), np.array(nlls[1][4:][::-1])  # lines 3 to 8 of both
    (row,) = [row for row in found.rows if row.name == "nll"]
    assert row.values == pytest.approx((ours.mean(), theirs.mean()))
    assert row.differences[0] == paired_bootstrap(ours, theirs)


def test_figures_of_the_set_are_compared_too(tmp_path: Path) -> None:
    found = compare(write_run(tmp_path / "a", 1), write_run(tmp_path / "b", 2))
    rows = {row.name: row for row in found.rows}
    assert {"perplexity", "bleu", "chrf", "distinct2_samples", "self_bleu_samples"} <= set(rows)
    for row in rows.values():
        assert row.values[1] - row.values[0] == pytest.approx(row.differences[0].mean)
        assert row.differences[0].low <= row.differences[0].mean <= row.differences[0].high


def test_a_run_equals_itself(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", 1)
    for row in compare(folder, folder).rows:
        assert (row.differences[0].mean, row.differences[0].low, row.differences[0].p_value) == (0.0, 0.0, 1.0)


def test_differences_of_more_runs_are_to_the_first(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, seed) for seed, name in enumerate("abc")]
    for row in compare(*folders).rows:
        assert [found.mean for found in row.differences] == pytest.approx([v - row.values[0] for v in row.values[1:]])


def test_scores_per_token_need_one_tokenizer_and_one_teacher(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", 1)
    other_teacher = compare(first, write_run(tmp_path / "b", 2, teacher_fingerprint="n"))
    names = {row.name for row in other_teacher.rows}
    assert ("nll" in names, "kl_student_teacher_data" in names) == (True, False)
    assert "the teachers differ" in other_teacher.notes[0]
    other_tokenizer = compare(first, write_run(tmp_path / "c", 2, tokenizer_fingerprint="u", max_new_tokens=16))
    assert not {"nll", "perplexity", "kl_student_teacher_data"} & {row.name for row in other_tokenizer.rows}
    assert "the tokenizers differ" in other_tokenizer.notes[0]
    assert other_tokenizer.notes[1] == "max_new_tokens differs: 8, 16"
    assert "8 examples are few" in other_tokenizer.notes[2]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", 1)
    with pytest.raises(CompareError, match=r"different held-out sets [(]sha256 aaaaaaaaaaaa and bbbbbbbbbbbb"):
        compare(first, write_run(tmp_path / "b", 2, eval_data_sha256="b" * 64))
    with pytest.raises(CompareError, match="at least two shared examples, got 1"):
        compare(first, write_run(tmp_path / "c", 2, range(8, 12)))
    with pytest.raises(CompareError, match="was not evaluated at step 20, only at 10"):
        compare(first, first, step=20)
    with pytest.raises(CompareError, match="at least two runs, got 1"):
        compare(first)
    results_path(first, 10).unlink()
    with pytest.raises(CompareError, match=r"step-000010\.jsonl: is missing"):
        compare(first, first)


def test_folders_that_are_no_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="nowhere: is no run folder"):
        read_run(tmp_path / "nowhere")
    folder = write_run(tmp_path / "a", 1)
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(CompareError, match="has no evaluation to compare"):
        read_run(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CompareError, match=r"config\.json: is not valid JSON"):
        read_run(folder)
