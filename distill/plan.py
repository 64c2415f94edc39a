"""What a training step of a configuration would cost on a mesh that is not there; nothing is allocated or run.

The step is the trainer's own, traced on shapes and compiled ahead of time for as many devices: by the TPU compiler
where it is installed (libtpu compiles without a TPU), else by XLA for as many virtual CPU devices. Weights, optimizer
state and teacher are sums over shards and exact; temporaries are the compiler's, gradients among them. XLA's
CPU compiler makes float32 copies of bfloat16 operands, so its temporaries are an upper bound for an accelerator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from attar.distill.batches import Batch
from attar.distill.hardware import Hardware
from attar.distill.loop_flops import count_flops
from attar.distill.methods.method import Method
from attar.distill.methods.pretrain import Pretrain
from attar.distill.methods.sft import Sft
from attar.distill.projected_loss import chunk_positions
from attar.distill.step import ComputeDtype, OptimizerConfig, TrainStep, init_state, make_optimizer, make_train_step
from attar.engine.config import ModelConfig
from attar.engine.sharding import MeshError, MeshShape, make_mesh, row_spec, weight_specs
from attar.engine.transformer import param_shapes


@dataclass(frozen=True)
class PlannedRun:
    """A pre-training run: every position of every row is learnt, from the teacher's distribution where there is one.

    Attributes:
      batch_size: Rows of a step.
      sequence: Tokens that are read of a row.
      accumulation_steps: Parts that a batch is worked through in.
      remat: Recompute activations in the backward pass.
    """

    student: ModelConfig
    teacher: ModelConfig | None
    mesh: MeshShape
    batch_size: int
    sequence: int
    accumulation_steps: int = 1
    remat: bool = True
    compute_dtype: ComputeDtype = "bfloat16"

    def __post_init__(self) -> None:
        rows = self.batch_size / self.accumulation_steps
        if rows % self.mesh.row_shards:
            raise MeshError(
                f"data times fsdp of the mesh must divide the rows worked on at a time, got {self.mesh} and "
                f"{self.batch_size} rows in {self.accumulation_steps} parts"
            )
        for model in (self.student, self.teacher):
            if model is not None and self.sequence > model.max_position_embeddings:
                raise MeshError(f"sequence must be at most {model.max_position_embeddings}, got {self.sequence}")

    @property
    def method(self) -> Method:
        """What is learnt."""
        return Sft() if self.teacher is None else Pretrain()

    @property
    def tokens(self) -> int:
        """Learnt in one step."""
        return self.batch_size * self.sequence


@dataclass(frozen=True)
class DeviceBytes:
    """Memory of one device.

    Attributes:
      weights: Float32, as trained.
      gradients: Float32; they are part of `temporaries`.
      optimizer: Moments and counters.
      teacher: In the dtype of the products.
      temporaries: Whatever else the compiled step needs at once.
    """

    weights: int
    gradients: int
    optimizer: int
    teacher: int
    temporaries: int

    @property
    def total(self) -> int:
        """At the peak of a step."""
        return self.weights + self.optimizer + self.teacher + self.temporaries


@dataclass(frozen=True)
class StepCost:
    """What one step costs.

    Attributes:
      bytes: Of each device.
      flops: Of all devices, by XLA's count, loops counted as often as they run; recomputation included.
      analytic_flops: 6 operations a weight and token for the student, 2 for the teacher, and attention's products.
      read_bytes: That a device must move at least: weights of each pass, and the state once in and once out.
    """

    bytes: DeviceBytes
    flops: float
    analytic_flops: float
    read_bytes: float

    def seconds(self, hardware: Hardware, mfu: float, devices: int) -> float:
        """Estimated time: what is slower of the products at a share `mfu` of the peak, and memory."""
        return max(self.flops / (devices * hardware.peak_flops * mfu), self.read_bytes / hardware.bandwidth_bytes)


def model_bytes(run: PlannedRun) -> DeviceBytes:
    """Bytes of each device without temporaries, from shapes and shards alone."""
    weights = param_shapes(run.student)
    state = jax.eval_shape(partial(init_state, optimizer=make_optimizer(_optimizer())), weights)
    held = _held(weights, run.student, run.mesh)
    moments = _held(state.optimizer_state, run.student, run.mesh) + state.step.dtype.itemsize
    teacher = 0 if run.teacher is None else _held(_teacher_shapes(run), run.teacher, run.mesh)
    return DeviceBytes(held, held, moments, teacher, 0)


def plan_step(run: PlannedRun, devices: Sequence[Any]) -> StepCost:
    """Compiles the step for devices, which need not be there.

    Args:
      devices: As many as the mesh has: virtual ones, or those of a compile-only topology.
    """
    fixed = model_bytes(run)
    held = DeviceBytes(fixed.weights, fixed.gradients, fixed.optimizer, fixed.teacher, temporary_bytes(run, devices))
    passes = (4 if run.remat else 3) * run.accumulation_steps
    width = jnp.dtype(run.compute_dtype).itemsize
    reads = width * passes * run.student.num_parameters / run.mesh.tensor + 2.0 * (held.weights + held.optimizer)
    if run.teacher is not None:
        reads += width * run.accumulation_steps * run.teacher.num_parameters / run.mesh.tensor
    return StepCost(held, step_flops(run), analytic_flops(run), reads)


def temporary_bytes(run: PlannedRun, devices: Sequence[Any]) -> int:
    """What the compiled step needs on a device beyond its arguments.

    Raises:
      MeshError: If the TPU compiler finds that the step does not fit into the memory of its devices.
    """
    with jax.set_mesh(make_mesh(run.mesh, devices)):
        step, *shapes = _step_and_shapes(run)
        try:
            compiled = step.lower(*shapes).compile()  # type: ignore[attr-defined]  # of a jitted function
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise MeshError(f"the step does not fit: {_first_sentence(str(error))}") from None
        memory = compiled.memory_analysis()
    return int(memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes)


def largest_batch(run: PlannedRun, devices: Sequence[Any], memory_bytes: float) -> int:
    """The most rows, in whole shares of the mesh, whose step fits into a device's memory; 0 if none does.

    Memory is a line in the number of rows, or nearly: it is drawn through two compiled steps, and the rows where it
    meets the limit are compiled in turn; if they do not fit, the line is drawn again through what they need.
    """
    share = run.mesh.row_shards * run.accumulation_steps
    fixed = model_bytes(run).total
    measured: dict[int, float] = {}

    def need(shares: int) -> float:
        if shares not in measured:
            sized = _with_rows(run, shares * share)
            try:
                measured[shares] = fixed + temporary_bytes(sized, devices)
            except MeshError:
                measured[shares] = math.inf
        return measured[shares]

    if need(1) > memory_bytes:
        return 0
    fits, fails = 1, _first_failure(need, memory_bytes)
    while fails - fits > 1:
        slope = (measured[fails] - measured[fits]) / (fails - fits)
        guess = fits + int((memory_bytes - measured[fits]) / slope) if math.isfinite(slope) else (fits + fails) // 2
        guess = min(max(guess, fits + 1), fails - 1)
        fits, fails = (guess, fails) if need(guess) <= memory_bytes else (fits, guess)
    return fits * share


def step_flops(run: PlannedRun) -> float:
    """Operations of one step over all devices, by XLA's count with loops as often as they run."""
    single = MeshShape()
    alone = PlannedRun(run.student, run.teacher, single, run.batch_size, run.sequence, 1, run.remat, run.compute_dtype)
    step, *shapes = _step_and_shapes(alone)
    turns = math.ceil(run.sequence / chunk_positions(run.batch_size, run.sequence, run.student.vocab_size))
    return count_flops(step, *shapes, while_trips=turns)


def analytic_flops(run: PlannedRun) -> float:
    """The usual estimate: 2 operations a weight and token forward, 4 backward, and the same of attention's products.

    References:
      Kaplan et al., 2020, arXiv:2001.08361, section 2.1; Chowdhery et al., 2022, arXiv:2204.02311, appendix B.
    """
    total = 3.0 * _forward_flops(run.student, run.sequence)
    if run.teacher is not None:
        total += _forward_flops(run.teacher, run.sequence)
    return total * run.tokens


def _forward_flops(model: ModelConfig, sequence: int) -> float:
    """Of one token: products with weights, the head included, and with keys and values, of which all are computed."""
    weights = model.non_embedding_parameters + model.vocab_size * model.hidden_size
    attention = 2 * model.num_hidden_layers * model.num_attention_heads * model.head_dim * sequence
    return 2.0 * (weights + attention)


def _optimizer() -> OptimizerConfig:
    return OptimizerConfig(learning_rate=1e-3, steps=1000, weight_decay=0.1)


def _teacher_shapes(run: PlannedRun) -> Any:
    assert run.teacher is not None
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _struct(leaf.shape, leaf.dtype if "norm" in path[-1].key else run.compute_dtype),
        param_shapes(run.teacher),
    )


def _step_and_shapes(run: PlannedRun) -> tuple[TrainStep, Any, Any, Any]:
    """The trainer's step, and shapes of state, teacher and batch as they lie on the mesh in force."""
    optimizer = make_optimizer(_optimizer())
    state = jax.eval_shape(partial(init_state, optimizer=optimizer), param_shapes(run.student))
    teacher = None if run.teacher is None else _laid(_teacher_shapes(run), run.teacher, run.mesh)
    step = make_train_step(
        run.student,
        run.teacher,
        run.method,
        optimizer,
        accumulation_steps=run.accumulation_steps,
        remat=run.remat,
        compute_dtype=run.compute_dtype,
    )
    return step, _laid(state, run.student, run.mesh), teacher, _batch_shapes(run)


def _batch_shapes(run: PlannedRun) -> Batch:
    """A prompt of one token and a completion of the rest, one beyond what is read: all that is read is learnt from."""
    rows, spec = run.batch_size, row_spec(run.batch_size, run.mesh)
    shapes = Batch(
        _struct((rows, 1), jnp.int32),
        _struct((rows,), jnp.int32),
        _struct((rows, run.sequence), jnp.int32),
        _struct((rows,), jnp.int32),
    )
    return _with_specs(shapes, jax.tree.map(lambda _: spec, shapes), run.mesh)  # type: ignore[no-any-return]


def _laid(tree: Any, config: ModelConfig, mesh: MeshShape) -> Any:
    return _with_specs(tree, weight_specs(tree, config, mesh), mesh)


def _with_specs(tree: Any, specs: Any, mesh: MeshShape) -> Any:
    if mesh.num_devices == 1:
        return tree
    place = jax.sharding.get_mesh()
    return jax.tree.map(
        lambda leaf, spec: _struct(leaf.shape, leaf.dtype, jax.sharding.NamedSharding(place, spec)), tree, specs
    )


def _struct(shape: tuple[int, ...], dtype: Any, sharding: Any = None) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)  # type: ignore[no-untyped-call]


def _held(tree: Any, config: ModelConfig, mesh: MeshShape) -> int:
    """Bytes of one device's parts."""

    def size(leaf: Any, spec: Any) -> int:
        parts = math.prod(getattr(mesh, axis) for axis in spec if axis is not None)
        return int(math.prod(leaf.shape) // parts * leaf.dtype.itemsize)

    return sum(jax.tree.leaves(jax.tree.map(size, tree, weight_specs(tree, config, mesh))))


def _with_rows(run: PlannedRun, rows: int) -> PlannedRun:
    return PlannedRun(
        run.student,
        run.teacher,
        run.mesh,
        rows,
        run.sequence,
        run.accumulation_steps,
        run.remat,
        run.compute_dtype,
    )


def _first_failure(need: Any, memory_bytes: float) -> int:
    """Shares that do not fit, from a line through one and two."""
    shares = 2
    while need(shares) <= memory_bytes:
        slope = max(need(shares) - need(shares // 2), 1.0) / (shares - shares // 2)
        shares = max(2 * shares, shares + 1 + int((memory_bytes - need(shares)) / slope))
    return shares


def _first_sentence(text: str) -> str:
    return text.split("\n")[0].removeprefix("RESOURCE_EXHAUSTED: ")[:300]
