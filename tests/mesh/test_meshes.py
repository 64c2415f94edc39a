"""What eight devices compute together, under any mesh, is what one computes alone."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ALL_AXES = "data=2,fsdp=2,tensor=2"
MESHES = ("data=8", "fsdp=8", ALL_AXES, "tensor=8")
Results = Mapping[str, Any]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    folder = tmp_path_factory.mktemp("meshes")
    worker = Path(__file__).with_name("worker.py")
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            str(worker),
            str(folder),
            "one",
            ALL_AXES,
            *(mesh for mesh in MESHES if mesh != ALL_AXES),  # which read the checkpoint that it leaves
        ],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "rematerialization" not in done.stderr, done.stderr  # XLA's word for copying what need not be copied
    return {mesh: dict(np.load(folder / f"{mesh}.npz")) for mesh in ("one", *MESHES)}


def compare(actual: Results, expected: Results, prefix: str, rtol: float, atol: float) -> None:
    names = [name for name in expected if name.startswith(prefix)]
    assert names
    for name in names:
        np.testing.assert_allclose(actual[name], expected[name], rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("mesh", MESHES)
def test_loss_and_gradients_are_those_of_one_device(results: dict[str, Results], mesh: str) -> None:
    assert results["one"]["parts.loss"] > 1e-3
    assert np.abs(results["one"]["parts.grad_norm"]) > 1e-3
    compare(results[mesh], results["one"], "parts.", rtol=1e-4, atol=2e-6)


def test_neither_accumulation_nor_remat_changes_them(results: dict[str, Results]) -> None:
    compare(results[ALL_AXES], results["one"], "plain.", rtol=1e-4, atol=2e-6)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(results[ALL_AXES][f"plain.{name}"], results["one"][f"parts.{name}"], rtol=1e-5)


def test_the_student_draws_the_same_samples_and_learns_the_same_from_them(results: dict[str, Results]) -> None:
    one, mesh = results["one"], results[ALL_AXES]
    np.testing.assert_array_equal(mesh["adam.drawn"], one["adam.drawn"])
    assert len(np.unique(one["adam.drawn"])) > 20
    np.testing.assert_allclose(mesh["adam.losses"], one["adam.losses"], rtol=1e-4)
    # Adam divides by the root of a square: where that is rounding alone, a step may go either way.
    compare(mesh, one, "adam.state.params", rtol=1e-3, atol=4 * 1e-3)
    close = [np.isclose(mesh[k], one[k], rtol=1e-3, atol=1e-6).mean() for k in one if k.startswith("adam.state.params")]
    assert min(close) > 0.99


def test_a_step_is_compiled_once(results: dict[str, Results]) -> None:
    assert results[ALL_AXES]["adam.programs"] == 1


def test_scores_are_those_of_one_device(results: dict[str, Results]) -> None:
    compare(results[ALL_AXES], results["one"], "sum.", rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mesh", ["data=8", "fsdp=8", "tensor=8"])
def test_a_checkpoint_goes_on_under_another_mesh_bit_for_bit(results: dict[str, Results], mesh: str) -> None:
    saved = {name: values for name, values in results[ALL_AXES].items() if name.startswith("adam.state.")}
    assert len(saved) > 30
    for name, values in saved.items():
        np.testing.assert_array_equal(results[mesh][name.replace("adam.state.", "resharded.")], values)


@pytest.mark.parametrize("mesh", ["one", *MESHES])
def test_a_plan_knows_what_each_device_holds(results: dict[str, Results], mesh: str) -> None:
    found = results[mesh]
    assert found["planned.weights"] == found["planned.gradients"] == found["held.weights"]
    assert found["planned.teacher"] == found["held.teacher"]
    if "adam.optimizer_bytes" in found:
        assert found["planned.optimizer"] == found["adam.optimizer_bytes"]


def test_each_device_holds_its_part(results: dict[str, Results]) -> None:
    whole = {name: results["one"][name] for name in results["one"] if name.startswith("bytes.")}
    for name, count in whole.items():
        divided = 1 if "norm" in name else 8
        assert results["data=8"][name] == count
        assert results["fsdp=8"][name] * divided == count
        assert results["tensor=8"][name] * divided == count
        assert results[ALL_AXES][name] * (1 if "norm" in name else 4) == count
