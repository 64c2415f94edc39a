"""The stand-alone program, run as a user runs it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from attar.runtime.native import NativeSession, library_version

if TYPE_CHECKING:
    from tests.unit.runtime.conftest import MakeTiny, TinyModel


def program() -> str:
    """attar-run as it was installed, beside this Python."""
    folders = [Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))]
    found = next((path for path in (shutil.which("attar-run", path=folder) for folder in folders) if path), None)
    assert found, "attar-run is not among the installed scripts; install attar: pip install -e ."
    return found


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program(), *map(str, arguments)], capture_output=True, text=True, errors="replace")


@pytest.fixture
def model(make_tiny: MakeTiny) -> TinyModel:
    return make_tiny("gemma2", vocabulary=True)


def test_help_lists_every_option() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    options = (
        "prompt tokens temp top-k top-p min-p seed ctx batch threads memory activation-bits kv overflow keep special "
        "quiet version help bench prefill depth repeat"
    )
    assert set(re.findall(r"--([a-z-]+)", done.stdout)) == set(options.split())


def test_version() -> None:
    done = run("--version")
    assert re.fullmatch(rf"attar {library_version()}, \w+ kernels\n", done.stdout)


def test_greedy_text_is_the_session_s(model: TinyModel) -> None:
    with NativeSession.open(model.path) as session:
        logits, want = session.prefill([2, 10, 11]), ""
        for _ in range(12):
            token = int(logits.argmax())
            assert token != 1, "the text must not end early; choose another prompt"
            want += model.texts[token]
            logits = session.decode(token)
    done = run(model.path, "-p", model.texts[10] + model.texts[11], "-n", "12", "--threads", "1")
    assert done.returncode == 0
    assert done.stdout == want + "\n"
    assert re.search(r"prompt 3 tokens, .* decode 12 tokens, ", done.stderr)


def test_seed_and_quiet(model: TinyModel) -> None:
    def sample(seed: int) -> str:
        arguments = [*"--temp 2 --top-k 30 --top-p 0.95 --min-p 0.001 -n 30 -q".split(), "--seed", str(seed)]
        done = run(model.path, "-p", "b", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_a_full_context_ends_the_text(model: TinyModel) -> None:
    done = run(model.path, "-p", "b", "--ctx", "5", "-n", "100")
    assert done.returncode == 0
    assert "the context of 5 tokens is full" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "missing argument: MODEL.gguf"),
        (["m.gguf"], "missing option: --prompt"),
        (["m.gguf", "-p"], "unknown option, or its value is missing: -p"),
        (["m.gguf", "--nonsense", "1"], "unknown option: --nonsense"),
        (["m.gguf", "n.gguf", "-p", "x"], "only one model is run: n.gguf"),
        (["m.gguf", "-p", "x", "-n", "many"], '-n must be a whole number .*, got "many"'),
        (["m.gguf", "-p", "x", "-n", "1.5"], '-n must be a whole number .*, got "1.5"'),
        (["m.gguf", "-p", "x", "--temp", "-1"], '--temp must be a number from 0 .*, got "-1"'),
        (["m.gguf", "-p", "x", "--threads", "0"], "--threads must be a whole number from 1"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert re.fullmatch(f"attar-run: {message}.*\n", done.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ctx", "100000"], r"n_ctx must be 0 \(default\) to 512, got 100000"),
        (["--ctx", "2"], r"\d+ tokens do not fit: the context holds 2"),
        (["--memory", "1"], r"needs \d+ bytes .* over the budget of 1000000"),
    ],
)
def test_a_refusal_is_one_line_and_exits_with_1(model: TinyModel, arguments: list[str], message: str) -> None:
    done = run(model.path, "-p", "b c b c", *arguments)
    assert done.returncode == 1
    assert re.fullmatch(f"attar-run: .*{message}.*\n", done.stderr)
    assert done.stdout == ""


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    done = run(tmp_path / "x.gguf", "-p", "b")
    assert done.returncode == 1
    assert re.fullmatch(r"attar-run: .*x\.gguf: not a GGUF file: .*\n", done.stderr)
