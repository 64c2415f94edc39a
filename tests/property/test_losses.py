"""Properties of the divergences and weights that hold for any input."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax import Array

from attar.distill.divergences import forward_kl, generalized_jsd, reverse_kl
from attar.distill.losses import completion_mask, token_weights

V = 7
logits = hnp.arrays(np.float32, V, elements=st.floats(-30, 30, width=32)).map(jnp.asarray)
betas = st.floats(0.01, 0.99)


@settings(deadline=None, max_examples=30)
@given(logits, logits, betas)
def test_jsd_lies_between_zero_and_its_bound(student: Array, teacher: Array, beta: float) -> None:
    value = float(generalized_jsd(student, teacher, beta))
    entropy_of_beta = -beta * np.log(beta) - (1 - beta) * np.log1p(-beta)
    assert -1e-6 <= value <= entropy_of_beta + 1e-5


@settings(deadline=None, max_examples=30)
@given(logits, logits, betas)
def test_jsd_swaps_sides_with_beta(student: Array, teacher: Array, beta: float) -> None:
    there, back = generalized_jsd(student, teacher, beta), generalized_jsd(teacher, student, 1 - beta)
    np.testing.assert_allclose(there, back, rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(logits, logits, st.floats(-50, 50, width=32))
def test_divergences_ignore_a_constant_and_are_not_negative(student: Array, teacher: Array, shift: float) -> None:
    for divergence in (forward_kl, reverse_kl):
        value = float(divergence(student, teacher))
        assert value >= -1e-5
        np.testing.assert_allclose(divergence(student + shift, teacher), value, rtol=1e-3, atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), st.sampled_from(["sequence", "token"]))
def test_weights_sum_to_one_and_vanish_on_padding(lengths: list[int], normalization: str) -> None:
    mask = completion_mask(jnp.array(lengths), 6)
    weights = np.asarray(token_weights(mask, normalization))  # type: ignore[arg-type]  # a plain str
    np.testing.assert_allclose(weights.sum(), 1.0 if any(lengths) else 0.0, rtol=1e-5)
    np.testing.assert_array_equal(weights[~np.asarray(mask)], 0.0)
