"""Oracles, limits, gradients and masks of the divergences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attar.distill.losses import (
    completion_mask,
    cross_entropy,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    token_weights,
)

P = jnp.log(jnp.array([0.7, 0.2, 0.1]))
Q = jnp.log(jnp.array([0.4, 0.4, 0.2]))


def test_oracle_of_the_paper() -> None:
    # methods.md 4.1, to the three digits given there.
    assert forward_kl(Q, P) == pytest.approx(0.184, abs=5e-4)
    assert generalized_jsd(Q, P, 0.5) == pytest.approx(0.046, abs=5e-4)
    assert reverse_kl(Q, P) == pytest.approx(0.192, abs=5e-4)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jsd_equals_its_definition_in_float64(beta: float) -> None:
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 5, 40)) * 4
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (teacher, student))
    m = beta * p + (1 - beta) * q
    expected = beta * (p * np.log(p / m)).sum(-1) + (1 - beta) * (q * np.log(q / m)).sum(-1)
    actual = generalized_jsd(jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32), beta)
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)


def test_beta_ends_are_the_exact_divergences() -> None:
    assert generalized_jsd(Q, P, 0.0) == forward_kl(Q, P)
    assert generalized_jsd(Q, P, 1.0) == reverse_kl(Q, P)


def test_divergences_are_the_limits_of_scaled_jsd() -> None:
    assert generalized_jsd(Q, P, 1e-3) / 1e-3 == pytest.approx(float(forward_kl(Q, P)), rel=5e-3)
    assert generalized_jsd(Q, P, 1 - 1e-3) / 1e-3 == pytest.approx(float(reverse_kl(Q, P)), rel=5e-3)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_identical_models_diverge_by_exactly_nothing(beta: float, dtype: jnp.dtype) -> None:
    logits = (jax.random.normal(jax.random.key(0), (4, 50)) * 5).astype(dtype)
    value, gradient = jax.value_and_grad(lambda x: generalized_jsd(x, logits, beta).sum())(logits)
    assert value == 0.0
    np.testing.assert_allclose(gradient.astype(jnp.float32), 0.0, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_gradient_by_finite_differences(beta: float) -> None:
    rng = np.random.default_rng(1)
    teacher, student = (jnp.asarray(rng.normal(size=8) * 2, jnp.float32) for _ in range(2))
    gradient = jax.grad(lambda x: generalized_jsd(x, teacher, beta))(student)
    step = 1e-2
    for i in range(8):
        up, down = (generalized_jsd(student.at[i].add(sign * step), teacher, beta) for sign in (1, -1))
        assert gradient[i] == pytest.approx(float(up - down) / (2 * step), abs=2e-4)


@pytest.mark.parametrize("beta", [0.3, 0.7])
def test_gradient_in_closed_form(beta: float) -> None:
    # methods.md 4.1: forward Q - P; reverse Q*(L - <Q, L>), L = log Q/P; JSD (1-β) Q*(L - <Q, L>), L = log Q/M.
    p, q = jnp.exp(P), jnp.exp(Q)
    np.testing.assert_allclose(jax.grad(lambda x: forward_kl(x, P))(Q), q - p, atol=1e-6)
    ratio = Q - P
    np.testing.assert_allclose(jax.grad(lambda x: reverse_kl(x, P))(Q), q * (ratio - q @ ratio), atol=1e-6)
    ratio = Q - jnp.log(beta * p + (1 - beta) * q)
    expected = (1 - beta) * q * (ratio - q @ ratio)
    np.testing.assert_allclose(jax.grad(lambda x: generalized_jsd(x, P, beta))(Q), expected, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_no_gradient_reaches_the_teacher(beta: float) -> None:
    np.testing.assert_array_equal(jax.grad(lambda teacher: generalized_jsd(Q, teacher, beta))(P), 0.0)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_tokens_that_neither_side_can_emit_do_not_matter(beta: float) -> None:
    padded_p, padded_q = (jnp.append(logits, -jnp.inf) for logits in (P, Q))
    value, gradient = jax.value_and_grad(lambda x: generalized_jsd(x, padded_p, beta))(padded_q)
    assert value == pytest.approx(float(generalized_jsd(Q, P, beta)), rel=1e-6)
    assert np.isfinite(gradient).all()
    assert gradient[-1] == 0.0


def test_far_apart_distributions_stay_finite_and_bounded() -> None:
    sharp = jnp.array([200.0, 0.0, -200.0])
    value, gradient = jax.value_and_grad(lambda x: generalized_jsd(x, -sharp, 0.5))(sharp)
    assert value == pytest.approx(np.log(2.0), rel=1e-5)
    assert np.isfinite(gradient).all()


def test_temperature_reaches_the_divergence() -> None:
    assert forward_kl(Q, P, temperature=2.0) == pytest.approx(float(forward_kl(Q / 2, P / 2)), rel=1e-6)
    assert forward_kl(Q, P, temperature=2.0) < forward_kl(Q, P)


def test_cross_entropy_is_the_negative_log_likelihood() -> None:
    logits = jnp.stack([P, Q]) + 3.0
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([0, 2])), -np.log([0.7, 0.2]), rtol=1e-5)


def test_masks_come_from_lengths() -> None:
    mask = completion_mask(jnp.array([0, 2, 3]), 3)
    np.testing.assert_array_equal(mask, [[0, 0, 0], [1, 1, 0], [1, 1, 1]])


def test_weights_of_both_normalisations() -> None:
    mask = completion_mask(jnp.array([1, 3, 0]), 3)
    np.testing.assert_allclose(token_weights(mask, "token"), [[1 / 4, 0, 0], [1 / 4, 1 / 4, 1 / 4], [0, 0, 0]])
    # The empty completion is not one of the sequences.
    np.testing.assert_allclose(token_weights(mask, "sequence"), [[1 / 2, 0, 0], [1 / 6, 1 / 6, 1 / 6], [0, 0, 0]])


def test_a_batch_of_empty_completions_weighs_nothing() -> None:
    mask = jnp.zeros((2, 3), bool)
    for normalization in ("sequence", "token"):
        np.testing.assert_array_equal(token_weights(mask, normalization), 0.0)  # type: ignore[arg-type]  # a plain str


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan")])
def test_beta_outside_its_range_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\]"):
        generalized_jsd(Q, P, beta)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_useless_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        forward_kl(Q, P, temperature)


def test_unknown_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match="normalization must be"):
        token_weights(jnp.ones((1, 1), bool), "batch")  # type: ignore[arg-type]  # the wrong value is the test
