"""Oracles, limits and gradients of the divergences."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from numpy.typing import NDArray

from attar.distill.divergences import (
    forward_kl,
    generalized_jsd,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    total_variation,
)

P = jnp.log(jnp.array([0.7, 0.2, 0.1]))
Q = jnp.log(jnp.array([0.4, 0.4, 0.2]))

Divergence = Callable[..., Array]
ALL: dict[str, Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd_0": partial(generalized_jsd, beta=0.0),
    "jsd_0.1": partial(generalized_jsd, beta=0.1),
    "jsd_0.5": partial(generalized_jsd, beta=0.5),
    "jsd_0.9": partial(generalized_jsd, beta=0.9),
    "jsd_1": partial(generalized_jsd, beta=1.0),
    "skew_kl": partial(skew_kl, skew=0.1),
    "skew_reverse_kl": partial(skew_reverse_kl, skew=0.1),
    "total_variation": total_variation,
}
every_divergence = pytest.mark.parametrize("divergence", ALL.values(), ids=ALL)


def definition(name: str, p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each divergence as the papers write it, in float64."""

    def kl(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((a * np.log(a / b)).sum(-1))

    if name.startswith("jsd_"):
        beta = float(name[4:])
        if beta in (0.0, 1.0):
            return kl(p, q) if beta == 0.0 else kl(q, p)
        m = beta * p + (1 - beta) * q
        return beta * kl(p, m) + (1 - beta) * kl(q, m)
    return {
        "forward_kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "skew_kl": kl(p, 0.1 * p + 0.9 * q),
        "skew_reverse_kl": kl(q, 0.9 * p + 0.1 * q),
        "total_variation": np.asarray(0.5 * np.abs(p - q).sum(-1)),
    }[name]


def test_oracle_of_the_paper() -> None:
    # Agarwal et al., 2024, to the three digits given there.
    assert forward_kl(Q, P) == pytest.approx(0.184, abs=5e-4)
    assert generalized_jsd(Q, P, 0.5) == pytest.approx(0.046, abs=5e-4)
    assert reverse_kl(Q, P) == pytest.approx(0.192, abs=5e-4)


@pytest.mark.parametrize("name", ALL)
def test_each_equals_its_definition_in_float64(name: str) -> None:
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 5, 40)) * 4
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (teacher, student))
    actual = ALL[name](jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32))
    np.testing.assert_allclose(actual, definition(name, p, q), rtol=2e-5, atol=1e-6)


def test_ends_of_beta_and_skew_are_the_exact_divergences() -> None:
    assert generalized_jsd(Q, P, 0.0) == forward_kl(Q, P)
    assert generalized_jsd(Q, P, 1.0) == reverse_kl(Q, P)
    assert skew_kl(Q, P, 0.0) == forward_kl(Q, P)
    assert skew_reverse_kl(Q, P, 0.0) == reverse_kl(Q, P)


def test_kls_are_the_limits_of_scaled_jsd() -> None:
    assert generalized_jsd(Q, P, 1e-3) / 1e-3 == pytest.approx(float(forward_kl(Q, P)), rel=5e-3)
    assert generalized_jsd(Q, P, 1 - 1e-3) / 1e-3 == pytest.approx(float(reverse_kl(Q, P)), rel=5e-3)


@every_divergence
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_identical_models_diverge_by_exactly_nothing(divergence: Divergence, dtype: jnp.dtype) -> None:
    logits = (jax.random.normal(jax.random.key(0), (4, 50)) * 5).astype(dtype)
    value, gradient = jax.value_and_grad(lambda x: divergence(x, logits).sum())(logits)
    assert value == 0.0
    np.testing.assert_allclose(gradient.astype(jnp.float32), 0.0, atol=1e-6)


@every_divergence
def test_gradient_by_finite_differences(divergence: Divergence) -> None:
    rng = np.random.default_rng(1)
    teacher, student = (jnp.asarray(rng.normal(size=8) * 2, jnp.float32) for _ in range(2))
    gradient = jax.grad(lambda x: divergence(x, teacher))(student)
    step = 1e-2
    for i in range(8):
        up, down = (divergence(student.at[i].add(sign * step), teacher) for sign in (1, -1))
        assert gradient[i] == pytest.approx(float(up - down) / (2 * step), abs=2e-4)


@every_divergence
def test_no_gradient_reaches_the_teacher(divergence: Divergence) -> None:
    np.testing.assert_array_equal(jax.grad(lambda teacher: divergence(Q, teacher))(P), 0.0)


@every_divergence
def test_tokens_that_neither_side_can_emit_do_not_matter(divergence: Divergence) -> None:
    padded_p, padded_q = (jnp.append(logits, -jnp.inf) for logits in (P, Q))
    value, gradient = jax.value_and_grad(lambda x: divergence(x, padded_p))(padded_q)
    assert value == pytest.approx(float(divergence(Q, P)), rel=1e-6)
    assert np.isfinite(gradient).all()
    assert gradient[-1] == 0.0


@pytest.mark.parametrize(
    ("divergence", "bound"),
    [
        (partial(generalized_jsd, beta=0.5), np.log(2.0)),
        (partial(skew_kl, skew=0.1), -np.log(0.1)),
        (partial(skew_reverse_kl, skew=0.1), -np.log(0.1)),
        (total_variation, 1.0),
    ],
)
def test_far_apart_distributions_stay_finite_and_bounded(divergence: Divergence, bound: float) -> None:
    sharp = jnp.array([200.0, 0.0, -200.0])
    value, gradient = jax.value_and_grad(lambda x: divergence(x, -sharp))(sharp)
    assert value == pytest.approx(bound, rel=1e-5)
    assert np.isfinite(gradient).all()


@every_divergence
def test_temperatures_reach_either_side(divergence: Divergence) -> None:
    tempered = partial(divergence, temperature=2.0)
    assert tempered(Q, P) == pytest.approx(float(divergence(Q / 2, P / 2)), rel=1e-6)
    apart = partial(divergence, temperature=2.0, teacher_temperature=0.5)
    assert apart(Q, P) == pytest.approx(float(divergence(Q / 2, P / 0.5)), rel=1e-6)


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan")])
def test_beta_outside_its_range_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\]"):
        generalized_jsd(Q, P, beta)


@pytest.mark.parametrize("skew", [-0.1, 1.0, float("nan")])
def test_skew_outside_its_range_is_refused(skew: float) -> None:
    for divergence in (skew_kl, skew_reverse_kl):
        with pytest.raises(ValueError, match=r"skew must be in \[0, 1\)"):
            divergence(Q, P, skew)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_useless_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        forward_kl(Q, P, temperature)
    with pytest.raises(ValueError, match="temperature must be positive"):
        forward_kl(Q, P, 1.0, temperature)
