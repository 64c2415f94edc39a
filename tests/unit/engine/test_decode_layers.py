"""A step of decoding by the function that XLA calls: against XLA's own, of every family and in odd sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attar.engine import decode_layers, few_rows, transformer
from attar.engine.config import ModelConfig
from attar.engine.generate import generate, left_pad
from attar.engine.kv_cache import KVCache, grow_cache, init_cache
from attar.engine.presets import PRESETS
from attar.engine.sampling import GREEDY
from attar.engine.transformer import Params, cached_hidden_states

STEPS = 3
ODD = {"hidden_size": 36, "intermediate_size": 53, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10}
CONFIGS: dict[str, ModelConfig] = {
    **{name: PRESETS[name] for name in ("tiny-gemma2", "tiny-gemma3", "tiny-llama")},
    **{f"odd {name}": PRESETS[f"tiny-{name}"].replace(**ODD) for name in ("gemma2", "gemma3", "llama")},
}


def random_params(config: ModelConfig) -> Params:
    """Norms too far from neutral to be forgotten."""
    rng = np.random.default_rng(0)
    params = transformer.init_params(config, jax.random.key(0))
    moved: Params = jax.tree.map(
        lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32) / leaf.shape[-1] ** 0.5, params
    )
    return moved


def decoder(config: ModelConfig, prompts: list[list[int]]) -> Any:
    """Jitted: hidden states [STEPS, B, 1, D] of some tokens after left-padded prompts, and the cache."""
    tokens, lengths = left_pad(prompts, 0)
    T = tokens.shape[1]
    positions = np.maximum(np.arange(T) - (T - lengths[:, None]), -1).astype(np.int32)

    @jax.jit
    def run(params: Params) -> tuple[jax.Array, KVCache]:
        cache = init_cache(config, len(prompts), T)
        _, cache = cached_hidden_states(params, config, jnp.asarray(tokens), jnp.asarray(positions), cache)
        cache, states = grow_cache(cache, T + STEPS + 3), []
        for step in range(STEPS):
            token, position = jnp.asarray(tokens[:, -1:] + step), jnp.asarray(lengths[:, None] + step)
            hidden, cache = cached_hidden_states(params, config, token, position, cache)
            states.append(hidden)
        return jnp.stack(states), cache

    return run


@pytest.fixture
def by_xla(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def switch() -> None:
        monkeypatch.setattr(decode_layers, "suits", lambda *arguments: False)
        monkeypatch.setattr(few_rows, "suits", lambda *arguments: False)
        jax.clear_caches()

    return switch


def some_prompts(lengths: tuple[int, ...]) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(3, 60, length).tolist() for length in lengths]


@pytest.mark.parametrize("name", CONFIGS)
def test_steps_equal_those_of_xla(name: str, by_xla: Callable[[], None]) -> None:
    """Prompts longer than the window, padded to one length; cache and states."""
    config, prompts = CONFIGS[name], some_prompts((40, 3, 17, 29, 33))
    assert config.sliding_window is None or config.sliding_window < 40
    params = random_params(config)
    run = decoder(config, prompts)
    own = run(params)
    assert "attar_decode_layers" in run.lower(params).as_text()
    by_xla()
    run = decoder(config, prompts)
    expected = run(params)
    assert "attar_decode_layers" not in run.lower(params).as_text()
    for left, right in zip(jax.tree.leaves(own), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)
    assert float(jnp.std(own[0])) > 0.5


def test_a_row_gives_the_same_bits_alone_and_among_others_and_every_time() -> None:
    config, prompts = PRESETS["tiny-gemma3"], some_prompts((21, 9, 21, 21, 21, 15))
    params = random_params(config)
    run = decoder(config, prompts)
    states, _ = run(params)
    for _ in range(20):  # whichever thread takes what
        np.testing.assert_array_equal(run(params)[0], states)
    step = jax.jit(lambda *arguments: cached_hidden_states(params, config, *arguments)[0])
    cache = init_cache(config, 6, 4)
    tokens, positions = jnp.arange(5, 11)[:, None], jnp.zeros((6, 1), jnp.int32)
    together = step(tokens, positions, cache)
    for row in range(6):
        alone = step(tokens[row : row + 1], positions[row : row + 1], init_cache(config, 1, 4))
        np.testing.assert_array_equal(alone[0], together[row])


def test_generation_is_that_of_xla_and_copies_no_cache(by_xla: Callable[[], None]) -> None:
    config = PRESETS["tiny-gemma2"]
    params = random_params(config)
    tokens, lengths = left_pad(some_prompts((7, 20)), 0)

    def run() -> np.ndarray:  # type: ignore[type-arg]  # int32
        found = generate(params, config, tokens, lengths, max_new_tokens=24, key=jax.random.key(0), sampling=GREEDY)
        return np.asarray(found.tokens)

    own = run()
    cache = grow_cache(init_cache(config, 2, 20), 44)
    step = jax.jit(
        lambda params, cache: jax.lax.fori_loop(
            0, 9, lambda i, c: cached_hidden_states(params, config, jnp.ones((2, 1), int), i[None, None], c)[1], cache
        ),
        donate_argnums=1,
    )
    compiled = step.lower(params, cache).compile().as_text() or ""
    assert "attar_decode_layers" in compiled
    shape = ",".join(map(str, cache.keys.shape))
    assert not [line for line in compiled.splitlines() if f"f32[{shape}]" in line and " copy(" in line]
    by_xla()
    np.testing.assert_array_equal(own, run())


def test_other_dtypes_and_many_rows_are_left_to_xla() -> None:
    config = PRESETS["tiny-llama"]
    params = transformer.init_params(config, jax.random.key(0))
    x, cache = jnp.zeros((2, 1, config.hidden_size)), init_cache(config, 2, 4)
    assert decode_layers.suits(params["layers"], x, cache)
    assert not decode_layers.suits(params["layers"], x.astype(jnp.bfloat16), cache)
    assert not decode_layers.suits(params["layers"], x, init_cache(config, 2, 4, jnp.bfloat16))
    narrow = params["layers"] | {"q_proj": params["layers"]["q_proj"].astype(jnp.bfloat16)}
    assert not decode_layers.suits(narrow, x, cache)
    assert not decode_layers.suits(params["layers"], jnp.zeros((2, 2, config.hidden_size)), cache)
    many = jnp.zeros((decode_layers.MAX_ROWS + 1, 1, config.hidden_size))
    assert not decode_layers.suits(params["layers"], many, cache)


def test_a_full_cache_is_refused() -> None:
    config = PRESETS["tiny-llama"]
    params = transformer.init_params(config, jax.random.key(0))
    full = init_cache(config, 1, 4)._replace(length=jnp.int32(4))
    with pytest.raises(jax.errors.JaxRuntimeError, match="the cache has no slot for another token"):
        jax.block_until_ready(
            cached_hidden_states(params, config, jnp.ones((1, 1), jnp.int32), jnp.full((1, 1), 4, jnp.int32), full)
        )


def test_half_of_a_pair_of_norms_is_refused() -> None:
    config = PRESETS["tiny-gemma2"]
    params = transformer.init_params(config, jax.random.key(0))
    layers = {name: leaf for name, leaf in params["layers"].items() if name != "post_feedforward_layernorm"}
    with pytest.raises(jax.errors.JaxRuntimeError, match="the norms before and behind the MLP come together"):
        jax.block_until_ready(
            cached_hidden_states(
                {**params, "layers": layers}, config, jnp.ones((1, 1), int), jnp.zeros((1, 1), int),
                init_cache(config, 1, 4),
            )
        )  # fmt: skip
