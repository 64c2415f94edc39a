"""Stored parts of a teacher's distribution: against the whole, against definitions, and without bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attar.distill.divergences import forward_kl
from attar.distill.stored_targets import sampled_cross_entropy, top_forward_kl

V = 40
TEACHER, STUDENT = (jax.random.normal(jax.random.key(seed), (3, V)) * 3 for seed in (0, 1))


def top(num_tokens: int) -> tuple[jax.Array, jax.Array]:
    log_p = jax.nn.log_softmax(TEACHER)
    values, tokens = jax.lax.top_k(log_p, num_tokens)
    return tokens, values


def test_all_tokens_give_the_whole_divergence_and_gradient() -> None:
    tokens, log_probs = top(V)
    value, gradient = jax.value_and_grad(lambda x: top_forward_kl(x, tokens, log_probs).sum())(STUDENT)
    expected, wanted = jax.value_and_grad(lambda x: forward_kl(x, TEACHER).sum())(STUDENT)
    assert value == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient, wanted, atol=1e-5)


@pytest.mark.parametrize("num_tokens", [1, 5, 20])
def test_the_rest_is_one_outcome(num_tokens: int) -> None:
    tokens, log_probs = top(num_tokens)
    p, q = (np.asarray(jax.nn.softmax(logits), np.float64) for logits in (TEACHER, STUDENT))
    top_p, top_q = (np.take_along_axis(x, np.asarray(tokens), -1) for x in (p, q))
    rest_p, rest_q = 1 - top_p.sum(-1), 1 - top_q.sum(-1)
    expected = (top_p * np.log(top_p / top_q)).sum(-1) + rest_p * np.log(rest_p / rest_q)
    actual = top_forward_kl(STUDENT, tokens, log_probs)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    assert (actual < forward_kl(STUDENT, TEACHER)).all()


def test_equal_distributions_diverge_by_nothing() -> None:
    tokens, log_probs = top(5)
    value, gradient = jax.value_and_grad(lambda x: top_forward_kl(x, tokens, log_probs).sum())(TEACHER)
    assert value == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_a_student_that_renormalises_the_top_is_not_the_best() -> None:
    tokens, log_probs = top(5)
    renormalised = jnp.full_like(TEACHER, -30.0)
    renormalised = jnp.put_along_axis(renormalised, tokens, log_probs, axis=-1, inplace=False)
    assert (top_forward_kl(renormalised, tokens, log_probs) > 0.01).all()


def test_a_teacher_without_a_rest_is_finite() -> None:
    tokens = jnp.array([[0, 1]])
    log_probs = jnp.log(jnp.array([[0.5, 0.5]]))
    value, gradient = jax.value_and_grad(lambda x: top_forward_kl(x, tokens, log_probs)[0])(STUDENT[:1])
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_samples_are_unbiased_for_the_cross_entropy() -> None:
    samples = jax.random.categorical(jax.random.key(2), TEACHER[:, None, :], shape=(3, 20000))
    p = jax.nn.softmax(TEACHER)
    expected = -(p * jax.nn.log_softmax(STUDENT)).sum(-1)
    np.testing.assert_allclose(sampled_cross_entropy(STUDENT, samples), expected, rtol=0.03)
    gradient = jax.grad(lambda x: sampled_cross_entropy(x, samples).sum())(STUDENT)
    np.testing.assert_allclose(gradient, jax.nn.softmax(STUDENT) - p, atol=0.02)
