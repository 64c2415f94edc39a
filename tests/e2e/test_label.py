"""`attar label` killed with SIGKILL goes on to the same bytes; students train from its folder without the teacher."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from attar.cli import main

WORDS = "a bc def gh i jkl mn op qrs t uv wxy z one two three".split()


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "train.jsonl"
    rows = [{"prompt": f"say {word}:", "completion": word[::-1]} for word in WORDS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(teacher: Path, words: Path, out: Path) -> list[str]:
    given = ["--teacher", teacher, "--data", words, "--out", out, "--max-new-tokens", 8, "--prompt-format", "plain"]
    return [str(value) for value in ("label", *given, "--batch-size", 1, "--shard-examples", 1, "--tokens", 260)]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def start(options: list[str]) -> subprocess.Popen[str]:
    """A process of its own: what this one has compiled before may round otherwise."""
    return subprocess.Popen(
        [sys.executable, "-m", "attar.cli", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, teacher: Path, words: Path) -> Path:
    folder = tmp_path_factory.mktemp("targets") / "whole"
    index = json.loads(finish(start([*options(teacher, words, folder), "--json"])))
    assert len(index["shards"]) == len(WORDS)
    assert index["shards"][0]["mean_kept_mass"] == pytest.approx(1.0, abs=1e-4)
    return folder


@pytest.mark.parametrize("shards", [1, 7])
def test_killed_and_gone_on_with_equals_uninterrupted(
    whole: Path, teacher: Path, words: Path, tmp_path: Path, shards: int
) -> None:
    folder = tmp_path / "killed"
    process = start(options(teacher, words, folder))
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.safetensors"))) < shards and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert json.loads((folder / "targets.json").read_text())["shards"] is None
    assert "is not finished" in run(*distill(words, folder, tmp_path / "run"), "--student", teacher).stderr
    finish(start(options(teacher, words, folder)))
    assert contents(folder) == contents(whole)


def distill(words: Path, targets: Path, out: Path) -> list[object]:
    given = ["--data", words, "--targets", targets, "--out", out, "--method", "pretrain", "--steps", 2]
    return ["distill", *given, "--batch-size", 2, "--max-new-tokens", 8, "--prompt-format", "plain"]


def test_students_train_from_the_folder_without_the_teacher(
    whole: Path, teacher: Path, words: Path, tmp_path: Path
) -> None:
    result = run(*distill(words, whole, tmp_path / "run"), "--student", teacher)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "config.json").read_text())["teacher_fingerprint"] is None
    refused = run(*distill(words, whole, tmp_path / "other"), "--student", teacher, "--max-new-tokens", 3)
    assert refused.exit_code == 1
    assert "the examples must be what was labelled" in refused.stderr


def test_options_that_would_do_nothing_are_refused(whole: Path, teacher: Path, words: Path, tmp_path: Path) -> None:
    refused = run(*options(teacher, words, tmp_path / "a"), "--seed", 3)
    assert (refused.exit_code, "--keep top draws nothing" in refused.stderr) == (2, True)
    refused = run(*distill(words, whole, tmp_path / "b"), "--student", teacher, "--method", "sft")
    assert (refused.exit_code, "--targets would do nothing" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "sft", "--reward", "rougeL"), "--reward would do nothing: --method sft does not read it"),
        (("--method", "gkd", "--alpha", 0.3), "--alpha would do nothing: it is read with --reward only"),
        (("--method", "gkd", "--lambda", 0, "--reward", "rougeL"), "a lambda above 0, got gkd and 0.0"),
    ],
)
def test_rewards_that_would_do_nothing_are_refused(
    teacher: Path, words: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    given = ["--teacher", teacher, "--student-layers", 1, "--data", words, "--out", tmp_path / "run"]
    refused = run("distill", *given, *arguments)
    assert refused.exit_code == 2
    assert message in " ".join(refused.stderr.split())


def test_greedy_answers_are_written_once(teacher: Path, words: Path, tmp_path: Path) -> None:
    given = ["--teacher", teacher, "--data", words, "--out", tmp_path / "answers.jsonl"]
    refused = run("generate", *given, "--temperature", 0, "--samples", 2)
    assert refused.exit_code == 2
    assert "samples must be 1 where answers are greedy" in refused.stderr


@pytest.mark.parametrize(
    ("kind", "option"), [("top", "--seed"), ("states", "--seed"), ("states", "--tokens"), ("states", "--temperature")]
)
def test_options_that_a_kind_of_targets_has_no_use_for(
    tmp_path: Path, teacher: Path, words: Path, kind: str, option: str
) -> None:
    result = run("label", "--teacher", teacher, "--data", words, "--out", tmp_path / "out", "--keep", kind, option, 3)
    assert result.exit_code == 2
    assert f"{option} would do nothing: --keep {kind}" in result.stderr
    assert not (tmp_path / "out").exists()
