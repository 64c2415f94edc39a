"""`attar plan` for eight devices, of which this machine has none."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from attar.cli import main
from attar.engine.presets import PRESETS

TINY = ["--student", "tiny-gemma2", "--mesh", "data=2,fsdp=2,tensor=2", "--hardware", "cpu", "--sequence", "32"]


def test_a_plan_as_json() -> None:
    options = ["--teacher", "tiny-gemma2", "--batch-size", "8", "--tokens", "2.56K", "--json", "--mfu", "0.5"]
    command = [sys.executable, "-m", "attar.cli", "plan", *TINY, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == 8
    assert found["steps"] == 10
    assert found["student_parameters"] == PRESETS["tiny-gemma2"].num_parameters
    held = found["bytes_per_device"]
    assert held["total"] == held["weights"] + held["optimizer"] + held["teacher"] + held["temporaries"]
    assert held["weights"] < found["student_parameters"] * 4 / 3  # a quarter, and the norms
    assert held["temporaries"] > held["gradients"]
    assert found["fits"]
    assert found["days"] == pytest.approx(10 * found["step_seconds"] / 86400)
    assert found["step_seconds"] >= found["flops_per_step"] / (8 * 1e11 * 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "6"], "data times fsdp of the mesh must divide the rows"),
        (["--mesh", "rows=3"], "a mesh is spelled like data=2,fsdp=4,tensor=1"),
        (["--tokens", "many"], "must be a positive number such as 500B"),
        (["--compiler", "tpu"], "--compiler tpu knows cpu in slices of so many: none; got 8"),
        (["--student", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_planned_is_one_line(options: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["plan", *TINY, *options])
    assert done.exit_code in (1, 2)
    assert message in " ".join(done.output.split())
