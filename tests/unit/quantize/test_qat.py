"""Rounding in training: the quantiser's own values, bit for bit, and the gradient of the identity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from attar.quantize.blocks import ENCODED, dequantize, quantize
from attar.quantize.qat import FAKE_QUANTIZED, fake_quantize


def varied_weights() -> NDArray[np.float32]:
    """Normal rows of four magnitudes; zeros, equal extremes of both signs, and values half-way between two codes."""
    rng = np.random.default_rng(0)
    weights = np.concatenate([rng.normal(0, deviation, (4000, 96)) for deviation in (1e-4, 0.02, 1, 30)])
    weights[0] = 0
    weights[1, :32] = np.tile([0.5, -0.5], 16)
    weights[2, :32] = np.tile([-0.5, 0.5], 16)
    weights[3, :32] = np.arange(32) - 16.0
    weights[4, :32] = (np.arange(32) - 16.0) / 2
    weights[5, :32] = [127.0, *(np.arange(31) + 0.5)]
    return weights.astype(np.float32)


def test_every_format_that_is_written_can_be_trained_for() -> None:
    assert set(FAKE_QUANTIZED) == set(ENCODED)


@pytest.mark.parametrize("name", FAKE_QUANTIZED)
def test_rounds_as_the_quantiser_bit_for_bit(name: str) -> None:
    weights = varied_weights()
    expected = dequantize(name, quantize(name, weights), weights.shape[1])
    for compute in (fake_quantize, jax.jit(fake_quantize, static_argnums=0)):
        actual = np.asarray(compute(name, jnp.asarray(weights)))
        np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


def test_stacked_weights_are_rounded_as_their_layers() -> None:
    weights = varied_weights()[:600].reshape(3, 200, 96)
    stacked = fake_quantize("Q4_0", jnp.asarray(weights))
    for layer, rounded in zip(weights, stacked, strict=True):
        np.testing.assert_array_equal(rounded, dequantize("Q4_0", quantize("Q4_0", layer), 96))


@pytest.mark.parametrize("name", FAKE_QUANTIZED)
def test_the_gradient_passes_straight_through(name: str) -> None:
    weights, coefficients = jnp.asarray(varied_weights()[:8]), jnp.asarray(varied_weights()[-8:])
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(coefficients * fake_quantize(name, w))))(weights)
    np.testing.assert_array_equal(gradient, coefficients)


def test_what_a_format_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="format must be one of F32, F16"):
        fake_quantize("Q6_K", jnp.zeros((2, 256)))
    with pytest.raises(ValueError, match="Q4_0 rows must be a multiple of 32 values, got 48"):
        fake_quantize("Q4_0", jnp.zeros((2, 48)))
