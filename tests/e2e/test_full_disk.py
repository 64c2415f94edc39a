"""A disk that is full, at whatever the run writes next: one clear line, and the run goes on to the same weights."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from attar.cli import main
from attar.distill.run_folder import read_metrics

STEPS = 6
WEIGHTS = Path("student", "model.safetensors")


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: the system refuses the write, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def command(teacher: Path, data: Path, run: Path) -> list[str]:
    options = ["--data", data, "--out", run, "--teacher", teacher, "--student-layers", "0,2", "--steps", STEPS]
    options += ["--batch-size", 2, "--max-new-tokens", 8, "--prompt-format", "plain", "--method", "sft"]
    options += ["--eval-every", 3, "--eval-examples", 2, "--checkpoint-every", 2, "--log", "tensorboard", "--pack"]
    return ["distill", *map(str, options)]


def finish(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output


def refused(arguments: list[str]) -> str:
    """The one line with which the command ends."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.output
    return errors[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, teacher: Path, data: Path) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(command(teacher, data, run))
    return run


@pytest.mark.parametrize("kilobytes", [0.2, 2, 20, 300])
def test_a_run_that_finds_no_room_goes_on_when_there_is(
    tmp_path: Path, whole: Path, teacher: Path, data: Path, kilobytes: float
) -> None:
    # By size: the configuration, an evaluation's results or the metrics, a plot, and a checkpoint do not fit.
    run = tmp_path / "run"
    with largest_file(int(kilobytes * 1024)):
        line = refused(command(teacher, data, run))
    assert str(run) in line
    assert "File too large" in line
    finish(command(teacher, data, run))
    assert (run / "student" / "model.safetensors").read_bytes() == (
        whole / "student" / "model.safetensors"
    ).read_bytes()
    lines, expected = (read_metrics(folder / "metrics.jsonl") for folder in (run, whole))
    assert [(a["kind"], a["step"], a.get("loss")) for a in lines] == [
        (a["kind"], a["step"], a.get("loss")) for a in expected
    ]


@pytest.mark.parametrize("kilobytes", [0.2, 4, 20])
def test_results_that_find_no_room_leave_the_last_checkpoint(
    tmp_path: Path, whole: Path, teacher: Path, data: Path, kilobytes: float
) -> None:
    run = tmp_path / "run"
    finish(command(teacher, data, run))
    for name in ("student", "tensorboard", "plots"):
        for path in (run / name).iterdir():
            path.unlink()
    with largest_file(int(kilobytes * 1024)):
        refused(command(teacher, data, run))
    finish(command(teacher, data, run))
    assert (run / "student" / "model.safetensors").read_bytes() == (
        whole / "student" / "model.safetensors"
    ).read_bytes()
