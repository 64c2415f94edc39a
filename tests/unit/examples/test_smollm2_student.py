"""The recipe's own parts: its texts and its curve."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from examples import smollm2_student
from examples.smollm2_student import Plan, Point, make_rows, read_curve, thinned

from attar.cli import main
from attar.distill.recipes.package_summaries import Pair
from attar.distill.run_folder import RunError


def write_lines(path: Path, lines: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_descriptions_are_asked_for_and_every_fifth_time_summarised(tmp_path: Path) -> None:
    pairs = [Pair("p", "s", f"A program number {i}.", f"program {i}").to_example() for i in range(6)]
    pairs[2] = Pair("p", "s", "too many words " * 10, "long").to_example()
    rows = list(make_rows(write_lines(tmp_path / "train.jsonl", [dict(pair) for pair in pairs]), max_words=8))
    assert len(rows) == 5
    assert rows[0] == {"prompt": "Summarise in one line:\nA program number 0.", "completion": "program 0"}
    assert rows[1]["prompt"] == "Describe the software that is summarised as: program 1"
    assert rows[1]["completion"] == "A program number 1."
    assert [row["completion"] for row in rows[2:]] == ["A program number 3.", "A program number 4.", "program 5"]


def test_the_curve_goes_on_from_stage_to_stage(tmp_path: Path) -> None:
    def train(step: int) -> dict[str, object]:
        return {"kind": "train", "step": step, "seconds": 30.0}

    def evaluation(step: int, kl: float) -> dict[str, object]:
        return {"kind": "eval", "step": step, "scores": {"kl_teacher_student_data": {"mean": kl}}}

    first = [{"kind": "start", "step": 0}, evaluation(0, 5.0), train(1), train(2), evaluation(2, 2.0)]
    second = [{"kind": "start", "step": 0}, evaluation(0, 2.0), train(1), evaluation(1, 1.0)]
    write_lines(tmp_path / "a" / "metrics.jsonl", first)
    write_lines(tmp_path / "b" / "metrics.jsonl", second)
    points = read_curve(tmp_path / "a", tmp_path / "b")
    assert [(point.step, point.minutes) for point in points] == [(0, 0.0), (2, 1.0), (3, pytest.approx(1.5))]
    assert [point.scores["kl_teacher_student_data"] for point in points] == [5.0, 2.0, 1.0]


def test_a_report_of_what_has_begun_or_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["smollm2_student", "--out", str(tmp_path), "--report"])
    with pytest.raises(SystemExit, match="no run here has been evaluated yet"):
        smollm2_student.main()
    names = [*smollm2_student.CURVES, "agreement_data"]
    lines: list[dict[str, object]] = [
        {"kind": "eval", "step": 0, "scores": {name: {"mean": 4.0} for name in names}},
        {"kind": "train", "step": 1, "seconds": 60.0},
        {"kind": "eval", "step": 1, "scores": {name: {"mean": 1.0} for name in names}},
    ]
    write_lines(tmp_path / "recovered" / "metrics.jsonl", lines)
    smollm2_student.main()
    assert "4.000 right after pruning, 1.000 at the end of this (25%)" in capsys.readouterr().out
    assert (tmp_path / "kl.png").stat().st_size > 1000
    metrics = tmp_path / "recovered" / "metrics.jsonl"
    metrics.write_text(metrics.read_text(encoding="utf-8") + '{"kind": "tr', encoding="utf-8")  # while it is written
    assert smollm2_student.main() == 0
    metrics.write_text('{"kind": "ev\n', encoding="utf-8")
    with pytest.raises(RunError, match=r"metrics.jsonl:1: is not valid JSON"):
        smollm2_student.main()


def test_a_long_table_keeps_its_ends() -> None:
    points = [Point(step, 0.0, {}) for step in range(100)]
    kept = thinned(points, 16)
    assert (len(kept), kept[0].step, kept[-1].step) == (16, 0, 99)
    assert thinned(points[:3], 16) == points[:3]


def test_every_command_is_one_that_attar_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both stages get as far as loading a teacher that is not there: no option is unknown or refused."""
    asked: list[list[str]] = []
    monkeypatch.setattr(smollm2_student, "attar", lambda *words, done: asked.append([str(word) for word in words]))
    smollm2_student.train(tmp_path / "out", Plan())
    assert [words[0] for words in asked] == ["distill", "distill"]
    for words in asked:
        elsewhere = [str(tmp_path / "absent") if word == "smollm2" else word for word in words]
        result = CliRunner().invoke(main, elsewhere)
        assert result.exit_code != 0
        assert "absent" in result.output, result.output
