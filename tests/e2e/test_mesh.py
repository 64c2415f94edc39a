"""`attar distill` on a mesh of two processes, as on two machines: the run that one process makes alone."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from attar.distill.run_folder import read_metrics

pytestmark = pytest.mark.slow

OPTIONS = (
    "--student-layers 0,1 --steps 4 --batch-size 4 --max-new-tokens 8 --prompt-buckets 1 --learning-rate 1e-3 "
    "--checkpoint-every 2 --eval-every 4 --eval-examples 3 --lambda 0.5 --accumulation-steps 2"
).split()


def start(run: Path, teacher: Path, data: Path, *options: str) -> subprocess.Popen[str]:
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-m", "attar.cli", "distill", "--teacher", str(teacher), "--data", str(data)]
    return subprocess.Popen(
        [*command, "--out", str(run), *OPTIONS, *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, output + errors
    return output, errors


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port: int = server.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, teacher: Path, data: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs")
    finish(start(folder / "one", teacher, data))
    address = f"localhost:{free_port()}"
    together = ("--mesh", "fsdp=2", "--coordinator", address, "--num-processes", "2")
    pair = [start(folder / "two", teacher, data, *together, "--process-id", str(i)) for i in range(2)]
    return {"folder": folder, "spoken": [finish(process) for process in pair]}


def assert_alike(actual: Path, expected: Path) -> None:
    """Runs whose steps, scores and weights are the same up to the order of sums."""
    lines, others = read_metrics(actual / "metrics.jsonl"), read_metrics(expected / "metrics.jsonl")
    assert [(line["kind"], line["step"]) for line in lines] == [(line["kind"], line["step"]) for line in others]
    for line, other in zip(lines, others, strict=True):
        if line["kind"] == "train":
            assert line["on_policy"] == other["on_policy"]
            for name in ("loss", "grad_norm", "completion_tokens"):
                assert line[name] == pytest.approx(other[name], rel=1e-3), name
        if line["kind"] == "eval":
            assert line["perplexity"] == pytest.approx(other["perplexity"], rel=1e-3)
            kl, other_kl = (each["scores"]["kl_student_teacher_data"]["mean"] for each in (line, other))
            assert kl == pytest.approx(other_kl, rel=1e-2)
    weights, expected_weights = (load_file(run / "student" / "model.safetensors") for run in (actual, expected))
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        # Adam steps by its rate where a gradient is rounding alone; all but few weights agree far better.
        np.testing.assert_allclose(weight, expected_weights[name], atol=4e-3, err_msg=name)
        assert np.isclose(weight, expected_weights[name], rtol=1e-3, atol=1e-5).mean() > 0.99, name


def test_two_processes_make_the_run_that_one_makes(runs: dict[str, Any]) -> None:
    assert_alike(runs["folder"] / "two", runs["folder"] / "one")


def test_only_the_first_process_speaks(runs: dict[str, Any]) -> None:
    (first, _), (second, _) = runs["spoken"]
    assert "student:" in first
    assert not [line for line in second.splitlines() if not line.startswith("[Gloo]")]  # which XLA's library prints


def test_what_two_processes_began_one_finishes(runs: dict[str, Any], teacher: Path, data: Path, tmp_path: Path) -> None:
    begun = tmp_path / "run"
    shutil.copytree(runs["folder"] / "two", begun)
    shutil.rmtree(begun / "checkpoints" / "step_00000004")
    shutil.rmtree(begun / "student")
    finish(start(begun, teacher, data))
    assert_alike(begun, runs["folder"] / "one")
