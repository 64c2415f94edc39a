"""One step: the loss against numpy, and what must not change it."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from attar.distill import projected_loss
from attar.distill.batches import Batch, pad_batch
from attar.distill.counted import completion_hidden
from attar.distill.data import Example
from attar.distill.losses import Normalization
from attar.distill.methods.gkd import Gkd
from attar.distill.methods.method import Method
from attar.distill.methods.sft import Sft
from attar.distill.step import (
    OptimizerConfig,
    StepMetrics,
    TrainState,
    TrainStep,
    init_state,
    learning_rate_schedule,
    make_optimizer,
    make_train_step,
)
from attar.engine.config import ModelConfig
from attar.engine.transformer import Params, forward, init_params, project_logits

OPTIMIZER = OptimizerConfig(learning_rate=1e-2, steps=10, schedule="constant", weight_decay=0.1)
EOS = 2


def network(shape: ModelConfig, seed: int) -> Params:
    """Random weights whose distributions are far from uniform."""
    params = init_params(shape, jax.random.key(seed))
    return {**params, "embed_tokens": params["embed_tokens"] * 5.0}


def rows(lengths: list[tuple[int, int]]) -> list[Example]:
    rng = np.random.default_rng(0)
    return [
        Example(i, rng.integers(3, 250, prompt, np.int32), rng.integers(3, 250, completion, np.int32), "", "")
        for i, (prompt, completion) in enumerate(lengths)
    ]


ROWS = rows([(5, 3), (2, 6), (7, 1), (4, 4)])
EMPTY = Example(9, np.array([5, 6], np.int32), np.array([], np.int32), "", "")


@lru_cache
def build_step(shape: ModelConfig, method: Method, normalization: Normalization, accumulation_steps: int) -> TrainStep:
    """Each step is compiled once for the whole file."""
    optimizer = make_optimizer(OPTIMIZER)
    return make_train_step(
        shape, shape, method, optimizer, normalization=normalization, accumulation_steps=accumulation_steps
    )


def one_step(
    shape: ModelConfig,
    method: Method,
    batch: Batch,
    *,
    normalization: Normalization = "sequence",
    accumulation_steps: int = 1,
    teacher_seed: int = 1,
) -> tuple[TrainState, StepMetrics]:
    step = build_step(shape, method, normalization, accumulation_steps)
    return step(init_state(network(shape, 0), make_optimizer(OPTIMIZER)), network(shape, teacher_seed), batch)


def assert_close(actual: Params, expected: Params, atol: float) -> None:
    for left, right in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, atol=atol)


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def expected_losses(shape: ModelConfig, examples: list[Example], beta: float | None) -> list[NDArray[np.float64]]:
    """Per-token losses of each row in float64: no mask, no slice, the definition of each loss.

    Rows begin at position 0; what follows them cannot reach back.
    """
    tokens = np.zeros((len(examples), 16), np.int32)
    for row, example in zip(tokens, examples, strict=True):
        row[: len(example.prompt) + len(example.completion)] = np.concatenate([example.prompt, example.completion])
    whole = jax.jit(forward, static_argnums=1)
    student, teacher = (np.asarray(whole(network(shape, seed), shape, tokens), np.float64) for seed in (0, 1))
    return [
        token_losses(log_softmax(student[i]), log_softmax(teacher[i]), example, beta)
        for i, example in enumerate(examples)
    ]


def token_losses(
    log_q: NDArray[np.float64], log_p: NDArray[np.float64], example: Example, beta: float | None
) -> NDArray[np.float64]:
    first = len(example.prompt) - 1
    log_q, log_p = (log[first : first + len(example.completion)] for log in (log_q, log_p))
    if beta is None:
        return np.asarray(-log_q[np.arange(len(example.completion)), example.completion])
    p, q = np.exp(log_p), np.exp(log_q)
    if beta == 0.0:
        return np.asarray((p * (log_p - log_q)).sum(-1))
    m = np.log(beta * p + (1 - beta) * q)
    return np.asarray((beta * p * (log_p - m) + (1 - beta) * q * (log_q - m)).sum(-1))


@pytest.mark.parametrize(
    ("method", "beta", "normalization"),
    [
        (Sft(), None, "sequence"),
        (Gkd(beta=0.0), 0.0, "sequence"),
        (Gkd(beta=0.3), 0.3, "sequence"),
        (Gkd(beta=0.3), 0.3, "token"),
    ],
)
def test_first_loss_equals_numpy(
    shape: ModelConfig, method: Method, beta: float | None, normalization: Normalization
) -> None:
    _, metrics = one_step(shape, method, pad_batch(ROWS, 8, 8, 0), normalization=normalization)
    values = expected_losses(shape, ROWS, beta)
    per_token, per_sequence = np.concatenate(values).mean(), np.mean([value.mean() for value in values])
    assert metrics.loss == pytest.approx(per_sequence if normalization == "sequence" else per_token, rel=1e-5)
    assert metrics.completion_tokens == 14


def test_padding_changes_neither_loss_nor_update(shape: ModelConfig) -> None:
    method = Gkd(beta=0.3)
    narrow, metrics = one_step(shape, method, pad_batch(ROWS, 8, 8, 0))
    wide, wide_metrics = one_step(shape, method, pad_batch(ROWS, 13, 11, 77))  # more padding, another padding id
    assert wide_metrics.loss == pytest.approx(float(metrics.loss), rel=1e-6)
    assert_close(wide.params, narrow.params, 1e-5)


def test_accumulation_equals_the_big_batch(shape: ModelConfig) -> None:
    # The parts hold 9 and 5 tokens: averaging their own averages would differ.
    batch = pad_batch(ROWS, 8, 8, 0)
    whole, metrics = one_step(shape, Gkd(beta=0.3), batch, normalization="token")
    parts, part_metrics = one_step(shape, Gkd(beta=0.3), batch, normalization="token", accumulation_steps=2)
    assert part_metrics.loss == pytest.approx(float(metrics.loss), rel=1e-6)
    assert part_metrics.grad_norm == pytest.approx(float(metrics.grad_norm), rel=1e-5)
    assert_close(parts.params, whole.params, 1e-5)


@pytest.mark.parametrize("chunk_logits", [1, 259 * 3, 259 * 5])
def test_positions_projected_a_few_at_a_time_give_the_same_loss_and_update(
    shape: ModelConfig, monkeypatch: pytest.MonkeyPatch, chunk_logits: int
) -> None:
    # One, three or five positions of four rows, since a chunk may be four times as large; three and five do not divide
    # the eight there are.
    batch = pad_batch(ROWS, 8, 8, 0)
    whole, metrics = one_step(shape, Gkd(beta=0.3), batch)
    monkeypatch.setattr(projected_loss, "CHUNK_LOGITS", chunk_logits)
    optimizer = make_optimizer(OPTIMIZER)
    step = make_train_step(shape, shape, Gkd(beta=0.3), optimizer)
    parts, part_metrics = step(init_state(network(shape, 0), optimizer), network(shape, 1), batch)
    assert part_metrics.loss == pytest.approx(float(metrics.loss), rel=1e-6)
    assert part_metrics.grad_norm == pytest.approx(float(metrics.grad_norm), rel=1e-5)
    assert_close(parts.params, whole.params, 1e-5)


def test_a_row_with_an_empty_completion_is_not_one_of_the_sequences(shape: ModelConfig) -> None:
    _, metrics = one_step(shape, Gkd(beta=0.3), pad_batch([*ROWS[:3], EMPTY], 8, 8, 0))
    expected = np.mean([value.mean() for value in expected_losses(shape, ROWS, 0.3)[:3]])
    assert metrics.loss == pytest.approx(expected, rel=1e-5)


def test_a_batch_of_empty_completions_only_decays_matrices(shape: ModelConfig) -> None:
    state, metrics = one_step(shape, Gkd(beta=0.3), pad_batch([EMPTY] * 4, 8, 8, 0))
    assert (metrics.loss, metrics.grad_norm, metrics.completion_tokens) == (0.0, 0.0, 0)
    before = network(shape, 0)
    np.testing.assert_array_equal(state.params["norm"], before["norm"])
    np.testing.assert_array_equal(state.params["layers"]["input_layernorm"], before["layers"]["input_layernorm"])
    q_proj = before["layers"]["q_proj"]
    np.testing.assert_allclose(state.params["layers"]["q_proj"], q_proj * (1 - 1e-2 * 0.1), rtol=1e-5)


def test_end_of_sequence_is_learnt_where_padding_has_its_id(shape: ModelConfig) -> None:
    ended = [Example(0, np.array([5, 6], np.int32), np.array([7, EOS], np.int32), "", "")] * 4
    _, metrics = one_step(shape, Sft(), pad_batch(ended, 8, 8, EOS))
    assert metrics.completion_tokens == 8
    assert metrics.loss == pytest.approx(expected_losses(shape, ended, None)[0].mean(), rel=1e-5)


def test_a_student_equal_to_its_teacher_has_loss_zero(shape: ModelConfig) -> None:
    _, metrics = one_step(shape, Gkd(beta=0.3), pad_batch(ROWS, 8, 8, 0), teacher_seed=0)
    assert float(metrics.loss) == pytest.approx(0.0, abs=1e-9)
    assert metrics.grad_norm < 1e-5


@pytest.mark.parametrize("teacher_seed", [0, 1])
def test_bfloat16_products_keep_float32_weights_and_losses(shape: ModelConfig, teacher_seed: int) -> None:
    optimizer, batch = make_optimizer(OPTIMIZER), pad_batch(ROWS, 8, 8, 0)
    step = make_train_step(shape, shape, Gkd(beta=0.3), optimizer, compute_dtype="bfloat16")
    state, metrics = step(init_state(network(shape, 0), optimizer), network(shape, teacher_seed), batch)
    _, exact = one_step(shape, Gkd(beta=0.3), batch, teacher_seed=teacher_seed)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
    # Equal weights give equal logits in any precision; others differ by bfloat16's rounding.
    assert metrics.loss == pytest.approx(float(exact.loss), abs=1e-9 if teacher_seed == 0 else 0.02 * float(exact.loss))


def test_a_teacher_with_a_padded_vocabulary_gives_the_same_loss(shape: ModelConfig) -> None:
    # Models of one family pad one vocabulary to different sizes; the rows beyond it are never tokens.
    padded = shape.replace(vocab_size=shape.vocab_size + 5)
    teacher = network(shape, 1)
    wide = {**teacher, "embed_tokens": jnp.pad(teacher["embed_tokens"], ((0, 5), (0, 0)), constant_values=0.5)}
    optimizer = make_optimizer(OPTIMIZER)
    step = make_train_step(shape, padded, Gkd(beta=0.3), optimizer)
    _, metrics = step(init_state(network(shape, 0), optimizer), wide, pad_batch(ROWS, 8, 8, 0))
    expected = np.mean([value.mean() for value in expected_losses(shape, ROWS, 0.3)])
    assert metrics.loss == pytest.approx(expected, rel=1e-5)


def test_completion_states_are_those_of_the_whole_sequence(shape: ModelConfig) -> None:
    params = network(shape, 0)
    batch = pad_batch(ROWS, 8, 8, 0)
    logits = project_logits(params, shape, jax.jit(completion_hidden, static_argnums=1)(params, shape, batch))
    for row, actual in zip(ROWS, logits, strict=True):
        tokens = np.zeros((1, 16), np.int32)
        tokens[0, : len(row.prompt) + len(row.completion)] = np.concatenate([row.prompt, row.completion])
        expected = jax.jit(forward, static_argnums=1)(params, shape, tokens)[0, len(row.prompt) - 1 :]
        np.testing.assert_allclose(actual[: len(row.completion)], expected[: len(row.completion)], atol=2e-5)


def test_schedule_rises_and_falls() -> None:
    rate = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, steps=10, warmup_steps=4, schedule="linear"))
    np.testing.assert_allclose(np.array([rate(step) for step in range(4)]), [0.25, 0.5, 0.75, 1.0])
    assert rate(4) == 1.0
    assert rate(7) == pytest.approx(0.5)
    assert rate(10) == 0.0
    cosine = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, steps=10, schedule="cosine"))
    assert [cosine(0), cosine(10)] == [1.0, 0.0]


def test_as_many_positions_are_projected_as_keep_a_product_busy_and_no_more() -> None:
    positions = projected_loss.chunk_positions
    assert positions(8, 64, 8192) == 16  # 128 rows, a million logits
    assert positions(8, 64, 1024) == 64  # all there are
    assert positions(8, 200, 32768) == 16  # 128 rows, four million logits
    assert positions(8, 64, 262144) == 2  # no more than four million logits
    assert positions(64, 64, 262144) == 1
