"""Plans against what is really allocated and unrolled; tiny shapes, one device (tests/mesh has more)."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from attar.distill import plan
from attar.distill.hardware import HARDWARE
from attar.distill.loop_flops import count_flops
from attar.distill.plan import (
    DeviceBytes,
    PlannedRun,
    StepCost,
    analytic_flops,
    largest_batch,
    model_bytes,
    step_flops,
    temporary_bytes,
)
from attar.distill.step import OptimizerConfig, init_state, make_optimizer
from attar.engine.presets import PRESETS
from attar.engine.sharding import MeshError, MeshShape
from attar.engine.transformer import hidden_states, init_params, param_shapes

TINY = PRESETS["tiny-gemma2"]
ONE = MeshShape()


@pytest.fixture
def unrolled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(jax.lax, "scan", partial(jax.lax.scan, unroll=True))
        yield


def gradient(remat: bool) -> Any:
    def loss(params: Any, tokens: Any) -> Any:
        return hidden_states(params, TINY, tokens, remat=remat).sum()

    return jax.grad(loss)


def flops_by_xla(lowered: jax.stages.Lowered) -> float:
    analysis = lowered.cost_analysis()
    assert analysis is not None
    return float(analysis["flops"])


@pytest.mark.parametrize("remat", [False, True])
def test_loops_are_counted_as_often_as_they_run(remat: bool, request: pytest.FixtureRequest) -> None:
    shapes = param_shapes(TINY), jax.ShapeDtypeStruct((2, 16), jnp.int32)  # type: ignore[no-untyped-call]
    counted = count_flops(gradient(remat), *shapes)
    xla = flops_by_xla(jax.jit(gradient(remat)).lower(*shapes))
    request.getfixturevalue("unrolled")
    whole = jax.jit(gradient(remat)).lower(*shapes)
    assert "while" not in whole.as_text()
    assert counted == pytest.approx(flops_by_xla(whole), rel=1e-4)
    assert xla < 0.4 * counted  # what XLA says of four scanned layers by itself


def test_loops_of_unknown_length_are_told() -> None:
    def turns(n: Any, x: Any) -> Any:
        return jax.lax.fori_loop(0, n, lambda i, y: y @ y, x)

    shapes = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((32, 32), jnp.float32)  # type: ignore[no-untyped-call]
    assert count_flops(turns, *shapes, while_trips=10) == pytest.approx(10 * 2 * 32**3, rel=0.01)


def test_bytes_are_those_of_the_arrays() -> None:
    run = PlannedRun(TINY, TINY, ONE, 4, 16, compute_dtype="bfloat16")
    params = init_params(TINY, jax.random.key(0))
    state = init_state(params, make_optimizer(OptimizerConfig(1e-3, 10, weight_decay=0.1)))
    held = model_bytes(run)
    assert held.weights == held.gradients == sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert held.optimizer == sum(leaf.nbytes for leaf in jax.tree.leaves(state.optimizer_state)) + state.step.nbytes
    norms = sum(leaf.nbytes for path, leaf in jax.tree_util.tree_leaves_with_path(params) if "norm" in path[-1].key)
    assert held.teacher == (held.weights - norms) // 2 + norms


def test_parameters_of_gemma2_are_the_published_ones() -> None:
    run = PlannedRun(PRESETS["gemma2-2b"], PRESETS["gemma2-9b"], MeshShape(fsdp=256), 256, 2048)
    assert run.student.num_parameters == 590_118_912 + 2_024_517_888
    assert run.teacher is not None
    assert run.teacher.num_parameters == 917_962_752 + 8_324_201_984
    held = model_bytes(run)
    norms = 4 * (26 * 4 + 1) * 2304  # float32, copied everywhere
    assert held.weights == 4 * run.student.num_parameters // 256 + norms - norms // 256
    assert held.optimizer == pytest.approx(2 * held.weights, abs=16)


def test_operations_are_near_the_usual_estimate() -> None:
    run = PlannedRun(TINY.replace(hidden_size=256, intermediate_size=1024), None, ONE, 2, 64, remat=False)
    assert step_flops(run) == pytest.approx(analytic_flops(run), rel=0.1)
    again = PlannedRun(run.student, None, ONE, 2, 64, remat=True)
    assert step_flops(again) == pytest.approx(4 / 3 * analytic_flops(run), rel=0.15)


@pytest.mark.parametrize("limit", [0, 1, 2, 7, 100, 12345])
def test_the_largest_batch_fits_and_a_share_more_does_not(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    run = PlannedRun(TINY, None, MeshShape(fsdp=4), 8, 32, accumulation_steps=2)
    asked = []

    def steps_and_slope(sized: PlannedRun, devices: Any) -> int:  # not quite a line, as compilers' figures are
        asked.append(sized.batch_size)
        if sized.batch_size > 400_000:
            raise MeshError("the step does not fit")
        return 1000 * (sized.batch_size // 8) + 300 * (sized.batch_size // 64) + 50

    monkeypatch.setattr(plan, "temporary_bytes", steps_and_slope)
    allowed = model_bytes(run).total + 1000 * limit + 300 * (limit // 8) + 50
    assert largest_batch(run, [], allowed) == 8 * limit
    assert largest_batch(run, [], allowed - 1) == 8 * max(limit - 1, 0)
    assert len(set(asked)) < 30
    assert largest_batch(run, [], 1e12) == 400_000


def test_memory_grows_with_rows() -> None:
    few, many = (PlannedRun(TINY, None, ONE, rows, 32, remat=False, compute_dtype="float32") for rows in (1, 16))
    states = 16 * 32 * TINY.hidden_size * 4  # what one layer alone keeps of 16 rows
    assert temporary_bytes(many, jax.devices()[:1]) > temporary_bytes(few, jax.devices()[:1]) + states
    assert temporary_bytes(few, jax.devices()[:1]) > model_bytes(few).gradients


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 6}, "data times fsdp of the mesh must divide the rows"),
        ({"sequence": 257}, "sequence must be at most 256"),
    ],
)
def test_what_cannot_be_planned_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(MeshError, match=message):
        PlannedRun(
            **{"student": TINY, "teacher": None, "mesh": MeshShape(fsdp=4), "batch_size": 8, "sequence": 16, **change}
        )


def test_time_is_what_is_slower() -> None:
    cost = StepCost(DeviceBytes(1, 1, 2, 0, 1), flops=197e12, analytic_flops=1.0, read_bytes=819e9)
    assert cost.seconds(HARDWARE["v5e"], 0.5, 1) == 2.0
    assert math.isclose(cost.seconds(HARDWARE["v5e"], 0.5, 4), 1.0)
