"""What must not change a loss, what must, and that no setting of a run is read by nothing."""

import ast
import dataclasses
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

import attar.distill
from attar.distill.batches import Batch, pad_batch
from attar.distill.config import TrainConfig
from attar.distill.counted import completion_hidden, counted_weights
from attar.distill.data import Example
from attar.distill.losses import Normalization
from attar.distill.methods.gkd import Gkd
from attar.distill.methods.method import Labels
from attar.distill.methods.sft import Sft
from attar.distill.packing import pack_rows
from attar.distill.step import OptimizerConfig, batch_loss, init_state, make_optimizer, make_train_step
from attar.engine.config import ModelConfig
from attar.engine.transformer import Params, init_params

NORMALIZATIONS: tuple[Normalization, ...] = ("sequence", "token")
PAD = 0


def rows(*lengths: tuple[int, int], seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [
        Example(i, rng.integers(3, 250, prompt, np.int32), rng.integers(3, 250, completion, np.int32), "", "")
        for i, (prompt, completion) in enumerate(lengths)
    ]


ROWS = rows((5, 3), (2, 6), (7, 1), (4, 4))


@lru_cache
def network(shape: ModelConfig, seed: int) -> Params:
    """Random weights whose distributions are far from uniform."""
    params = init_params(shape, jax.random.key(seed))
    return {**params, "embed_tokens": params["embed_tokens"] * 5.0}


@partial(jax.jit, static_argnames="shape")
def compiled(shape: ModelConfig, params: Params, teacher: Params, batch: Batch, weights: jax.Array) -> jax.Array:
    return batch_loss(params, shape, Gkd(beta=0.3), batch, weights, (teacher, shape))


def loss_of(shape: ModelConfig, batch: Batch, weights: jax.Array | NDArray[np.float32]) -> float:
    """GKD's loss between two networks."""
    return float(compiled(shape, network(shape, 0), network(shape, 1), batch, jnp.asarray(weights)))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_amount_of_padding_does_not_matter(shape: ModelConfig, normalization: Normalization) -> None:
    losses = []
    for prompt_tokens, completion_tokens, pad in ((8, 8, PAD), (13, 11, 77), (8, 20, PAD)):
        batch = pad_batch(ROWS, prompt_tokens, completion_tokens, pad)
        losses.append(loss_of(shape, batch, counted_weights(batch, normalization)))
    assert losses == pytest.approx([losses[0]] * 3, rel=2e-6)


@pytest.mark.parametrize("others", [rows((1, 1), (1, 2), (2, 1), seed=4), rows((8, 8), (7, 8), (8, 5), seed=5)])
def test_other_rows_do_not_touch_a_rows_loss_at_all(shape: ModelConfig, others: list[Example]) -> None:
    only_first = np.zeros((4, 8), np.float32)
    only_first[0, :3] = 1 / 3
    expected, actual = (
        loss_of(shape, pad_batch([ROWS[0], *rest], 8, 8, PAD), only_first) for rest in (ROWS[1:], others)
    )
    assert actual == expected > 0


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_accumulation_does_not_matter(shape: ModelConfig, normalization: Normalization) -> None:
    optimizer, found = make_optimizer(OptimizerConfig(learning_rate=1e-2, steps=10)), []
    for parts in (1, 2):
        step = make_train_step(shape, None, Sft(), optimizer, normalization=normalization, accumulation_steps=parts)
        _, metrics = step(init_state(network(shape, 0), optimizer), None, pad_batch(ROWS, 8, 8, PAD))
        found.append((float(metrics.loss), float(metrics.grad_norm)))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_equal_models_do_not_diverge_in_bfloat16_packed_rows(shape: ModelConfig) -> None:
    optimizer, params = make_optimizer(OptimizerConfig(learning_rate=1e-2, steps=10)), network(shape, 0)
    step = make_train_step(shape, shape, Gkd(beta=0.3), optimizer, compute_dtype="bfloat16")
    _, metrics = step(init_state(params, optimizer), params, pack_rows([ROWS[:2], ROWS[2:]], 24, PAD))
    assert metrics.loss == pytest.approx(0.0, abs=1e-9)


def test_only_counted_tokens_are_learnt(shape: ModelConfig) -> None:
    # With a head of its own, its gradient is Σ w (q - onehot) hᵀ over the counted positions, and nothing else.
    untied = shape.replace(tie_word_embeddings=False)
    batch = pad_batch(ROWS, 8, 8, 77)
    weights = counted_weights(batch, "sequence")
    params = {**network(untied, 0), "lm_head": network(untied, 2)["embed_tokens"]}
    gradient = jax.jit(jax.grad(lambda p: batch_loss(p, untied, Sft(), batch, weights, None)))(params)
    hidden = np.asarray(completion_hidden(params, untied, batch), np.float64)  # [B, N, D]
    logits = hidden @ np.asarray(params["lm_head"], np.float64).T
    q = np.exp(logits - logits.max(-1, keepdims=True))
    q /= q.sum(-1, keepdims=True)
    errors = (q - np.eye(shape.vocab_size)[np.asarray(batch.completions)]) * np.asarray(weights)[:, :, None]
    np.testing.assert_allclose(gradient["lm_head"], np.einsum("bnv,bnd->vd", errors, hidden), atol=1e-6)
    np.testing.assert_array_equal(gradient["embed_tokens"][77], 0.0)  # padding is read by nothing


@pytest.mark.parametrize(("student_extra", "teacher_extra"), [(0, 5), (5, 0), (3, 9)])
def test_vocabularies_padded_to_different_sizes_give_one_loss(
    shape: ModelConfig, student_extra: int, teacher_extra: int
) -> None:
    batch = pad_batch(ROWS, 8, 8, PAD)
    weights = counted_weights(batch, "sequence")

    def loss(student_rows: int, teacher_rows: int) -> float:
        sides = [padded(network(shape, seed), n) for seed, n in ((0, student_rows), (1, teacher_rows))]
        shapes = [shape.replace(vocab_size=shape.vocab_size + n) for n in (student_rows, teacher_rows)]
        teacher = (sides[1], shapes[1])
        return float(jax.jit(lambda p: batch_loss(p, shapes[0], Gkd(), batch, weights, teacher))(sides[0]))

    if student_extra and teacher_extra:  # what both have beyond the vocabulary counts for both
        assert loss(student_extra, teacher_extra) == pytest.approx(loss(student_extra, student_extra), rel=1e-6)
    else:
        assert loss(student_extra, teacher_extra) == pytest.approx(loss(0, 0), rel=1e-6)


def padded(params: Params, extra: int) -> Params:
    return {**params, "embed_tokens": jnp.pad(params["embed_tokens"], ((0, extra), (0, 0)), constant_values=0.5)}


BASE: dict[str, Any] = {"data": "d", "teacher": "t", "student": "s"}


@pytest.mark.parametrize(
    "change",
    [
        {"divergence": "forward_kl"},
        {"divergence": "reverse_kl"},
        {"divergence": "total_variation"},
        {"divergence": "skew_kl"},
        {"divergence": "skew_reverse_kl"},
        {"beta": 0.1},
        {"divergence_temperature": 2.0},
        {"teacher_temperature": 2.0},
        {"method": "pretrain"},
        {"method": "sft"},
    ],
    ids=str,
)
def test_every_setting_of_the_divergence_reaches_the_loss(change: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.normal(size=(2, 3, 20)), jnp.float32) for _ in range(2))
    labels = Labels(jnp.asarray(rng.integers(0, 20, (2, 3))))
    base, changed = (TrainConfig(**BASE | c).make_method().loss(student, labels, teacher) for c in ({}, change))
    assert np.abs(np.asarray(base) - np.asarray(changed)).min() > 1e-4


def test_skew_reaches_the_loss() -> None:
    test_every_setting_of_the_divergence_reaches_the_loss({"divergence": "skew_kl", "skew": 0.5})
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 3, 20)), jnp.float32)
    found = [
        float(Gkd(divergence="skew_kl", skew=skew).loss(logits[0], Labels(jnp.zeros((1, 3), int)), logits[1]).sum())
        for skew in (0.1, 0.5)
    ]
    assert found[0] > found[1] + 1e-3


def test_every_setting_of_a_run_is_read_somewhere() -> None:
    root = Path(str(attar.distill.__file__)).parent
    read: set[str] = set()
    for path in root.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        checks = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef) and function.name.startswith("_check_") and path.stem == "config"
            for node in ast.walk(function)
        }
        read |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and id(n) not in checks}
    assert {field.name for field in dataclasses.fields(TrainConfig)} <= read
