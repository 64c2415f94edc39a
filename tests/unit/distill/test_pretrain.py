"""Pre-training distillation: against its definition in float64, online and from stored targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attar.distill.methods.method import Labels
from attar.distill.methods.pretrain import Pretrain
from attar.distill.stored_targets import DrawnTargets, TopTargets

V = 30
TEACHER, STUDENT = (jax.random.normal(jax.random.key(seed), (2, 3, V)) * 3 for seed in (0, 1))
TOKENS = jnp.zeros((2, 3), jnp.int32)


def top(num_tokens: int) -> TopTargets:
    values, tokens = jax.lax.top_k(jax.nn.log_softmax(TEACHER), num_tokens)
    return TopTargets(tokens, values)


def loss_and_gradient(labels: Labels, teacher: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    values = Pretrain().loss(STUDENT, labels, teacher)
    return values, jax.grad(lambda x: Pretrain().loss(x, labels, teacher).sum())(STUDENT)


def test_loss_and_gradient_are_those_of_the_definition() -> None:
    p, q = (np.exp(np.asarray(x, np.float64)) for x in (TEACHER, STUDENT))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    values, gradient = loss_and_gradient(Labels(TOKENS), TEACHER)
    np.testing.assert_allclose(values, -(p * np.log(q)).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(gradient, q - p, atol=1e-6)


def test_all_tokens_stored_give_the_loss_of_the_teacher_at_hand() -> None:
    expected, wanted = loss_and_gradient(Labels(TOKENS), TEACHER)
    actual, gradient = loss_and_gradient(Labels(TOKENS, top(V)), None)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, wanted, atol=1e-5)


def test_few_tokens_with_their_tail_give_a_lower_bound_that_rises_with_them() -> None:
    whole, _ = loss_and_gradient(Labels(TOKENS), TEACHER)
    bounds = [Pretrain().loss(STUDENT, Labels(TOKENS, top(k)), None) for k in (1, 4, 12)]
    for lower, higher in zip(bounds, [*bounds[1:], whole], strict=True):
        assert (lower < higher).all()


def test_drawn_tokens_are_unbiased() -> None:
    drawn = jax.random.categorical(jax.random.key(2), TEACHER[..., None, :], shape=(2, 3, 20000))
    expected, wanted = loss_and_gradient(Labels(TOKENS), TEACHER)
    actual, gradient = loss_and_gradient(Labels(TOKENS, DrawnTargets(drawn)), None)
    np.testing.assert_allclose(actual, expected, rtol=0.03)
    np.testing.assert_allclose(gradient, wanted, atol=0.02)


def test_no_constant_passes_a_gradient_to_the_teacher() -> None:
    gradient = jax.grad(lambda t: Pretrain().loss(STUDENT, Labels(TOKENS), t).sum())(TEACHER)
    np.testing.assert_array_equal(gradient, 0.0)


def test_a_loss_without_anything_of_the_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="teacher's logits or stored targets"):
        Pretrain().loss(STUDENT, Labels(TOKENS), None)
