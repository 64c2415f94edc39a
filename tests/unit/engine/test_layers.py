"""Products and their gradients against JAX's own and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from attar.engine.layers import head_logits, linear


def plain(x: Array, weight: Array) -> Array:
    return jnp.einsum("...i,oi->...o", x, weight)


@pytest.mark.parametrize(("inner", "outer"), [(3, 12), (12, 3), (5, 5)])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_products_have_the_gradients_of_plain_ones(inner: int, outer: int, batch: tuple[int, ...]) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    x, weight = jax.random.normal(keys[0], (*batch, inner)), jax.random.normal(keys[1], (outer, inner))
    cotangent = jax.random.normal(keys[2], (*batch, outer))
    value, pull_back = jax.vjp(linear, x, weight)
    expected, pull_back_plain = jax.vjp(plain, x, weight)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    for found, wanted in zip(pull_back(cotangent), pull_back_plain(cotangent), strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [3, 12])
def test_products_keep_bfloat16_and_the_heads_logits_are_float32(size: int) -> None:
    x, weight = jnp.ones((2, 6), jnp.bfloat16), jnp.full((size, 6), 0.5, jnp.bfloat16)
    assert linear(x, weight).dtype == jnp.bfloat16
    logits, pull_back = jax.vjp(lambda x, weight: head_logits(x, weight, None), x, weight)
    assert logits.dtype == jnp.float32
    d_x, d_weight = pull_back(jnp.ones_like(logits))
    assert (d_x.dtype, d_weight.dtype) == (jnp.bfloat16, jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(d_x, np.float32), 0.5 * size)
    np.testing.assert_array_equal(np.asarray(d_weight, np.float32), 2.0)


def test_products_are_kept_for_the_backward_pass_by_policies_that_keep_products() -> None:
    """A policy does not look into a function with its own gradient: the backward pass took all products again."""

    def layer(x: Array, weight: Array) -> Array:
        return linear(jnp.sin(linear(x, weight)), weight)

    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    kept = jax.checkpoint(layer, policy=policy)
    gradient = jax.value_and_grad(lambda x, weight: kept(x, weight).sum(), argnums=(0, 1))
    x, weight = jnp.ones((7, 4)), jnp.ones((4, 4))
    text = jax.jit(gradient).lower(x, weight).as_text()
    assert text.count("dot_general") == 6  # two forward, and two for each backward
