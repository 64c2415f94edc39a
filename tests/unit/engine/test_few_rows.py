"""Products of a few rows by the kernel that XLA calls: against float64, and in any number."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from attar.engine import few_rows
from attar.engine.few_rows import product, suits


def draw(*shape: int) -> np.ndarray:  # type: ignore[type-arg]  # float32
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def test_the_kernel_is_installed() -> None:
    assert suits(1, jnp.dtype(jnp.float32))
    assert not suits(few_rows.MAX_ROWS + 1, jnp.dtype(jnp.float32))
    assert not suits(1, jnp.dtype(jnp.bfloat16))


@pytest.mark.parametrize(("size_out", "size_in"), [(1, 1), (5, 7), (3, 8), (37, 64), (260, 131), (1021, 96)])
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 16, 19])
def test_products_equal_float64(rows: int, size_out: int, size_in: int) -> None:
    """Also in sizes that no block divides, on one thread and on several."""
    x, matrix = draw(rows, size_in), draw(size_out, size_in)
    found = product(jnp.asarray(x), jnp.asarray(matrix))
    exact = x.astype(np.float64) @ matrix.astype(np.float64).T
    scale = np.abs(x.astype(np.float64)) @ np.abs(matrix.astype(np.float64)).T
    assert np.max(np.abs(np.asarray(found) - exact) / scale) < 1e-6


def test_a_row_gives_the_same_bits_alone_and_among_others() -> None:
    x, matrix = draw(11, 200), jnp.asarray(draw(301, 200))
    together = np.asarray(product(jnp.asarray(x), matrix))
    for row in range(11):
        np.testing.assert_array_equal(product(jnp.asarray(x[row : row + 1]), matrix)[0], together[row])
    for _ in range(20):  # whichever thread takes what
        np.testing.assert_array_equal(product(jnp.asarray(x), matrix), together)


def test_leading_axes_are_kept_and_sizes_must_agree() -> None:
    matrix = jnp.asarray(draw(6, 4))
    assert product(jnp.zeros((2, 1, 4)), matrix).shape == (2, 1, 6)
    with pytest.raises(ValueError, match="x must have rows of 4 for a matrix 6 by 4, got 5"):
        product(jnp.zeros((2, 5)), matrix)
