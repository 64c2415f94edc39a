"""`attar compare` on two tiny runs, from training to table and plot."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from attar.cli import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, teacher: Path, data: Path) -> list[Path]:
    """One run evaluated on four examples, one on all six, with other learning rates."""
    folder = tmp_path_factory.mktemp("runs")
    for name, rate, examples in (("slow", 1e-5, 4), ("fast", 1e-2, 6)):
        options = ["--data", data, "--out", folder / name, "--teacher", teacher, "--student-layers", "0,2"]
        options += ["--steps", 4, "--batch-size", 2, "--max-new-tokens", 8, "--eval-every", 2, "--lambda", 0]
        options += ["--prompt-format", "plain", "--learning-rate", rate, "--eval-examples", examples]
        result = run("distill", *options)
        assert result.exit_code == 0, result.output
    return [folder / "slow", folder / "fast"]


def test_a_paired_table(runs: list[Path]) -> None:
    result = run("compare", *runs)
    assert result.exit_code == 0, result.output
    assert "4 shared examples: slow at step 4 (4 examples), fast at step 4 (6 examples)" in result.output
    for name in ("nll ↓", "agreement_data ↑", "rougeL ↑", "bleu ↑", "perplexity ↓"):
        assert name in result.output


def test_json_and_plot(runs: list[Path], tmp_path: Path) -> None:
    plot = tmp_path / "curves.png"
    result = run("compare", *runs, "--step", 2, "--plot", plot, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["num_shared"], found["steps"]) == (4, [2, 2])
    rows = {row["name"]: row for row in found["rows"]}
    metrics = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    (logged,) = [line for line in metrics if line["kind"] == "eval" and line["step"] == 2]
    assert rows["nll"]["values"][0] == pytest.approx(logged["scores"]["nll"]["mean"])
    assert rows["perplexity"]["values"][0] == pytest.approx(logged["perplexity"])
    slow, fast = rows["nll"]["values"]
    assert rows["nll"]["differences"][0]["mean"] == pytest.approx(fast - slow)
    assert fast != slow
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_more_than_two_runs(runs: list[Path]) -> None:
    result = run("compare", *runs, runs[0])
    assert result.exit_code == 0, result.output
    assert result.output.count("95 % interval") == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("{run}",), 2, "compare takes at least two run folders, got 1"),
        (("{run}", "{teacher}"), 1, "is no run folder"),
        (("{run}", "{run}", "--step", 3), 1, "was not evaluated at step 3, only at 0, 2, 4"),
        (("{run}", "{run}", "--plot", "curves.txt"), 2, "--plot takes a file ending in .png, .svg, .pdf"),
        (("{run}", "{run}", "--plot", "/nowhere/curves.png"), 1, "No such file or directory"),
    ],
)
def test_what_is_refused(
    runs: list[Path], teacher: Path, arguments: tuple[object, ...], code: int, message: str
) -> None:
    result = run("compare", *(str(a).format(run=runs[0], teacher=teacher) for a in arguments))
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
