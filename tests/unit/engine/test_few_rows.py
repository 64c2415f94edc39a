"""Products of a few rows by the kernel that XLA calls: against float64, in any number, and inside a decoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attar.engine import few_rows, transformer
from attar.engine.config import ModelConfig
from attar.engine.few_rows import StackedMatrix, product, suits
from attar.engine.kv_cache import init_cache
from attar.engine.presets import PRESETS
from attar.engine.transformer import cached_hidden_states, project_logits


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
    x, stacked = draw(rows, size_in), draw(3, size_out, size_in)
    for index in (0, 2):
        found = product(jnp.asarray(x), StackedMatrix(jnp.asarray(stacked), jnp.int32(index)))
        exact = x.astype(np.float64) @ stacked[index].astype(np.float64).T
        scale = np.abs(x.astype(np.float64)) @ np.abs(stacked[index].astype(np.float64)).T
        assert np.max(np.abs(np.asarray(found) - exact) / scale) < 1e-6


def test_a_row_gives_the_same_bits_alone_and_among_others() -> None:
    x, matrix = draw(11, 200), StackedMatrix(jnp.asarray(draw(2, 301, 200)), jnp.int32(1))
    together = np.asarray(product(jnp.asarray(x), matrix))
    for row in range(11):
        np.testing.assert_array_equal(product(jnp.asarray(x[row : row + 1]), matrix)[0], together[row])
    for _ in range(20):  # whichever thread takes what
        np.testing.assert_array_equal(product(jnp.asarray(x), matrix), together)


def test_leading_axes_are_kept_and_sizes_must_agree() -> None:
    matrix = StackedMatrix(jnp.asarray(draw(1, 6, 4)), jnp.int32(0))
    assert product(jnp.zeros((2, 1, 4)), matrix).shape == (2, 1, 6)
    with pytest.raises(ValueError, match="x must have rows of 4 for a matrix 6 by 4, got 5"):
        product(jnp.zeros((2, 5)), matrix)


def test_an_index_beyond_the_matrices_is_refused() -> None:
    matrix = StackedMatrix(jnp.asarray(draw(2, 6, 4)), jnp.int32(2))
    with pytest.raises(jax.errors.JaxRuntimeError, match="the index must be that of a matrix"):
        jax.block_until_ready(product(jnp.zeros((1, 4)), matrix))


@pytest.mark.parametrize("name", ["tiny-gemma2", "tiny-gemma3", "tiny-llama"])
def test_a_decoding_step_is_the_same_with_and_without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config: ModelConfig = PRESETS[name]
    params = transformer.init_params(config, jax.random.key(0))
    tokens, positions = jnp.asarray([[5], [9]], jnp.int32), jnp.zeros((2, 1), jnp.int32)

    def step() -> tuple[jax.Array, jax.Array]:
        hidden, _ = cached_hidden_states(params, config, tokens, positions, init_cache(config, 2, 4))
        return hidden, project_logits(params, config, hidden[:, -1], constant=True)

    own = jax.jit(step)()
    assert "attar_few_rows" in jax.jit(step).lower().as_text()
    monkeypatch.setattr(few_rows, "suits", lambda rows, dtype: False)
    jax.clear_caches()
    assert "attar_few_rows" not in jax.jit(lambda: step()).lower().as_text()
    for left, right in zip(own, jax.jit(lambda: step())(), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)
