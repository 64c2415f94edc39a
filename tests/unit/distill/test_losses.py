"""Likelihoods, masks and weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from attar.distill.losses import completion_mask, cross_entropy, token_weights


def test_cross_entropy_is_the_negative_log_likelihood() -> None:
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2]])) + 3.0
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


def test_unknown_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match="normalization must be"):
        token_weights(jnp.ones((1, 1), bool), "batch")  # type: ignore[arg-type]  # the wrong value is the test
