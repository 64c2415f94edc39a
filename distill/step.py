"""One optimisation step: student and teacher on the completion positions, the method's loss, AdamW.

A row is read as `prompt | completion` with the prompt padded on the left, so the completion stands in the same
columns of every row, and a plain slice picks the hidden states that predict it; packed rows gather theirs (counted.py).
Only those N positions are projected to the vocabulary, in student and teacher, a few at a time (projected_loss.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]  # ships neither stubs nor py.typed
from jaxtyping import Array, Float, Int, PyTree

from attar.distill.counted import AnyBatch, completion_hidden, counted_mask, counted_weights, labels, teacher_hidden
from attar.distill.losses import Normalization
from attar.distill.methods.method import Method
from attar.distill.parametrization import Direct, Parametrization
from attar.distill.projected_loss import Head, HeadConfig, projected_loss
from attar.engine.config import ModelConfig
from attar.engine.sharding import constrain_rows, constrain_weights
from attar.engine.transformer import Params, head_table

Schedule = Literal["constant", "linear", "cosine"]
ComputeDtype = Literal["float32", "bfloat16"]


class TrainState(NamedTuple):
    """All that a step changes; a pytree.

    Attributes:
      params: The trained weights, as the parametrisation holds them.
      step: int32 scalar, the number of optimisation steps done.
    """

    params: Params
    optimizer_state: optax.OptState
    step: Int[Array, ""]


class StepMetrics(NamedTuple):
    """Float scalars of one step; loss in nats per token as the normalisation defines it."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    completion_tokens: Int[Array, ""]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up, decay and clipping.

    Attributes:
      learning_rate: The peak.
      warmup_steps: Linear rise from 0 to the peak.
      schedule: What follows until `steps`: the peak kept, or a fall to 0 along a line or a cosine.
      weight_decay: On matrices only; norm weights are left alone.
      max_grad_norm: Gradients of a larger global norm are scaled down to it.
    """

    learning_rate: float
    steps: int
    warmup_steps: int = 0
    schedule: Schedule = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8


def learning_rate_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Learning rate as a function of the steps done."""
    peak, rest = config.learning_rate, max(config.steps - config.warmup_steps, 1)
    after: optax.Schedule
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, 0.0, rest)
    else:
        after = optax.cosine_decay_schedule(peak, rest)
    if config.warmup_steps == 0:
        return after
    # The first step already learns: it takes 1/warmup of the peak.
    rise = optax.linear_schedule(peak / config.warmup_steps, peak, max(config.warmup_steps - 1, 1))
    return optax.join_schedules([rise, after], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The gradient transformation of an `OptimizerConfig`."""
    return optax.chain(
        clip_global_norm(config.max_grad_norm),
        optax.adamw(
            learning_rate_schedule(config),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=_is_matrix,
        ),
    )


def clip_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales a gradient of a larger global norm down to `max_norm`.

    optax's own divides, which XLA does once and keeps beside what it divided: a copy of all gradients. A factor it
    multiplies in wherever the gradient is read.
    """

    def scaled(gradient: optax.Updates, _: optax.Params | None) -> optax.Updates:
        norm = _global_norm(gradient)
        factor = jnp.where(norm > max_norm, max_norm / norm, 1.0)
        return jax.tree.map(lambda leaf: leaf * factor, gradient)

    return optax.stateless(scaled)


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step. It owns copies, because steps donate their state."""
    params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def cast_matrices(params: Params, dtype: ComputeDtype) -> Params:
    """Matrices in the dtype of the products; norms stay float32, where they are computed."""
    matrices = _is_matrix(params)
    return jax.tree.map(lambda leaf, matrix: leaf.astype(dtype) if matrix else leaf, params, matrices)  # type: ignore[no-any-return]  # a tree of Params' structure


def completion_heads(
    params: Params,
    student: ModelConfig,
    batch: AnyBatch,
    teacher: tuple[Params, ModelConfig] | None,
    *,
    remat: bool = False,
    constant: bool = False,
) -> tuple[HeadConfig, Head, Head | None]:
    """What the losses over the completion positions read; the teacher's side is a constant, or both are."""
    hidden = completion_hidden(params, student, batch, remat=remat, constant=constant)
    head = Head(hidden, head_table(params, student))
    if teacher is None:
        return HeadConfig(student.final_logit_softcapping, None, student.vocab_size), head, None
    constants, config = jax.lax.stop_gradient(teacher[0]), teacher[1]
    caps = student.final_logit_softcapping, config.final_logit_softcapping
    sizes = student.vocab_size, config.vocab_size
    heads = HeadConfig(*caps, min(sizes)) if batch.view is None else HeadConfig(*caps, *sizes)
    return heads, head, Head(teacher_hidden(constants, config, batch), head_table(constants, config))


def batch_loss(
    params: Params,
    student: ModelConfig,
    method: Method,
    batch: AnyBatch,
    weights: Float[Array, "B N"],
    teacher: tuple[Params, ModelConfig] | None,
    *,
    remat: bool = False,
) -> Float[Array, ""]:
    """Σ weights · method values; a part of the batch's loss where the batch is a part."""
    heads = completion_heads(params, student, batch, teacher, remat=remat)
    return projected_loss(method.loss, *heads, labels(batch), weights)


class TrainStep(Protocol):
    """A jitted step; the old state is donated."""

    def __call__(
        self, state: TrainState, teacher_params: Params | None, batch: AnyBatch, frozen: Params | None = None, /
    ) -> tuple[TrainState, StepMetrics]:
        """Returns the state after the step and its metrics; `frozen` is the parametrisation's."""
        ...


def make_train_step(
    student: ModelConfig,
    teacher: ModelConfig | None,
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    normalization: Normalization = "sequence",
    accumulation_steps: int = 1,
    remat: bool = False,
    compute_dtype: ComputeDtype = "float32",
    parametrization: Parametrization = Direct(),  # noqa: B008 - immutable
) -> TrainStep:
    """Builds the jitted step `(state, teacher_params, batch, frozen) -> (state, metrics)`; the old state is donated.

    Args:
      student: Shape of the model being trained.
      teacher: Shape of the teacher, or None where the method needs none.
      method: The loss.
      optimizer: As from `make_optimizer`.
      normalization: How tokens are averaged, over the whole batch whatever the accumulation.
      accumulation_steps: Equal parts the batch is worked through in, which bounds memory; must divide the rows.
      remat: Recompute activations in the backward pass.
      compute_dtype: Of the products and activations of both models. Weights, their gradients and updates, logits and
        losses are float32 in any case.
      parametrization: What the state's weights are to the student.
    """

    def part_gradient(
        params: Params, teacher_params: Params | None, part: AnyBatch, weights: Array
    ) -> tuple[Array, Any]:
        known = None
        if method.needs_teacher and teacher is not None and teacher_params is not None:
            known = (cast_matrices(teacher_params, compute_dtype), teacher)

        def loss(params: Params) -> Array:
            computed = cast_matrices(params, compute_dtype)
            return batch_loss(computed, student, method, part, weights, known, remat=remat)

        value, gradient = jax.value_and_grad(loss)(params)
        return value, constrain_weights(gradient, student)

    def step(
        state: TrainState, teacher_params: Params | None, batch: AnyBatch, frozen: Params | None = None, /
    ) -> tuple[TrainState, StepMetrics]:
        effective, pull_back = jax.vjp(lambda trained: parametrization.effective(trained, frozen), state.params)
        weights = counted_weights(batch, normalization)
        if accumulation_steps == 1:
            loss, gradient = part_gradient(effective, teacher_params, batch, weights)
        else:
            loss, gradient = _accumulate(
                lambda part, w: part_gradient(effective, teacher_params, part, w),
                (batch, weights),
                accumulation_steps,
            )
        (gradient,) = pull_back(gradient)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
        params: Params = jax.tree.map(jnp.add, state.params, updates)
        metrics = StepMetrics(loss, _global_norm(gradient), counted_mask(batch).sum())
        return constrain_weights(TrainState(params, optimizer_state, state.step + 1), student), metrics

    return jax.jit(step, donate_argnums=(0,))


def _accumulate(
    part_gradient: Callable[[AnyBatch, Array], tuple[Array, Any]], whole: tuple[AnyBatch, Array], parts: int
) -> tuple[Array, Any]:
    """Sums loss and gradient over equal parts of the rows. The weights already refer to the whole batch."""
    split = jax.tree.map(lambda leaf: jnp.reshape(leaf, (parts, -1, *leaf.shape[1:])), whole)
    split = constrain_rows(split, axis=1)

    def add(total: Any, part: tuple[AnyBatch, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, part_gradient(*part)), None

    first = jax.tree.map(lambda leaf: leaf[0], split)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(part_gradient, *first))
    total, _ = jax.lax.scan(add, zeros, split)
    return total  # type: ignore[no-any-return]  # (loss, gradient like params)


def _global_norm(tree: PyTree) -> Float[Array, ""]:
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def _is_matrix(params: Params) -> Any:
    """True on matrices, by name: a stacked norm weight has two dimensions as well."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in path[-1].key, params)
