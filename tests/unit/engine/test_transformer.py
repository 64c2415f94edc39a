"""Properties of the decoder that hold whatever the weights: windows, caps, padding, caching, dtypes, shapes."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attar.engine import transformer
from attar.engine.attention import attend, visible_keys
from attar.engine.config import ModelConfig
from attar.engine.kv_cache import grow_cache, init_cache
from attar.engine.layers import embed, soft_cap
from attar.engine.presets import PRESETS
from attar.engine.surgery import outer_layers, take_layers
from attar.engine.transformer import Params, cached_hidden_states, param_shapes

# Compiled whole: run op by op, each operation would be compiled for each shape.
forward = jax.jit(transformer.forward, static_argnums=1, static_argnames="remat")
hidden_states = jax.jit(transformer.hidden_states, static_argnums=1, static_argnames="last")
init_params = jax.jit(transformer.init_params, static_argnums=0)

TINY = ["tiny-gemma2", "tiny-gemma3", "tiny-llama"]


@pytest.fixture(scope="module", params=TINY)
def model(request: pytest.FixtureRequest) -> tuple[ModelConfig, Params]:
    """A tiny model whose weights are large enough that every key and cap changes the logits."""
    config = PRESETS[request.param]
    params = init_params(config, jax.random.key(0))
    return config, jax.tree.map(lambda w: w * 8 if w.ndim > 1 else w, params)


def test_query_sees_exactly_window_keys_itself_included() -> None:
    positions = jnp.arange(12)[None]
    seen = np.asarray(visible_keys(positions, positions, 4)[0])
    assert seen[9].nonzero()[0].tolist() == [6, 7, 8, 9]
    assert seen[2].nonzero()[0].tolist() == [0, 1, 2]


def test_padding_is_never_seen() -> None:
    positions = jnp.asarray([[-1, -1, 0, 1, 2, -1]])
    seen = np.asarray(visible_keys(positions, positions, 8)[0])
    assert not seen[:, [0, 1, 5]].any()
    assert seen[4].nonzero()[0].tolist() == [2, 3, 4]


def test_first_layer_of_gemma2_is_local() -> None:
    assert PRESETS["gemma2-2b"].layer_types[:2] == ("sliding_attention", "full_attention")


def test_local_layers_alone_cannot_reach_beyond_their_windows() -> None:
    config = PRESETS["tiny-gemma2"].replace(layer_types=("sliding_attention",) * 4)  # reach: 4 * 7 tokens back
    params = init_params(config, jax.random.key(0))
    tokens = jnp.arange(40, dtype=jnp.int32)[None]
    changed = tokens.at[0, 5].set(99)
    difference = np.abs(np.asarray(forward(params, config, tokens) - forward(params, config, changed))).max(axis=-1)[0]
    assert (difference[:5] == 0).all()
    assert difference[5 + 28] > 0
    assert (difference[5 + 29 :] == 0).all()


def test_cap_comes_before_mask() -> None:
    """A masked key gets no weight even where the cap is far below the mask's magnitude."""
    q = jnp.ones((1, 1, 1, 2))
    k = jnp.ones((1, 1, 2, 2))
    v = jnp.asarray([[[[1.0, 1.0], [5.0, 5.0]]]])
    out = attend(q, k, v, jnp.asarray([[[True, False]]]), scale=1.0, cap=0.5)
    np.testing.assert_array_equal(out, np.ones((1, 1, 1, 2)))


def test_soft_cap_bounds_and_keeps_small_values() -> None:
    x = jnp.asarray([-1e6, -100.0, 0.01, 100.0, 1e6])
    capped = soft_cap(x, 30.0)
    assert float(jnp.abs(capped).max()) <= 30
    assert float(capped[2]) == pytest.approx(0.01, rel=1e-5)
    assert soft_cap(x, None) is x


def test_logits_stay_below_the_final_cap() -> None:
    config = PRESETS["tiny-gemma2"]
    params = jax.tree.map(lambda w: w * 100, init_params(config, jax.random.key(0)))
    logits = forward(params, config, jnp.arange(20, dtype=jnp.int32)[None])
    assert 10 < float(jnp.abs(logits).max()) <= 30


def test_embedding_factor_is_rounded_to_the_activation_dtype() -> None:
    table = jnp.ones((3, 3584), jnp.bfloat16)  # sqrt(3584) = 59.867, in bfloat16 59.75
    assert float(embed(table, jnp.zeros((1, 1), jnp.int32), scaled=True)[0, 0, 0]) == 59.75


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model: tuple[ModelConfig, Params], side: str) -> None:
    config, params = model
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (1, 20)), jnp.int32)
    pad = ((0, 0), (6, 0)) if side == "left" else ((0, 0), (0, 6))
    padded, mask = jnp.pad(tokens, pad, constant_values=77), jnp.pad(jnp.ones((1, 20), bool), pad)
    alone = forward(params, config, tokens)
    together = forward(params, config, padded, padding_mask=mask)
    assert bool(jnp.isfinite(together).all())
    np.testing.assert_allclose(np.asarray(together)[np.asarray(mask)], np.asarray(alone)[0], atol=2e-4)


def test_cached_steps_equal_the_full_forward(model: tuple[ModelConfig, Params]) -> None:
    """Over three windows; the cache grows on the way, as in `generate`."""
    config, params = model
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, config.vocab_size, (2, 27)), jnp.int32)
    full = hidden_states(params, config, tokens)
    read = jax.jit(partial(cached_hidden_states, config=config))
    cache, pieces = init_cache(config, 2, 10), []
    for start, end in [(0, 10), *((i, i + 1) for i in range(10, 27))]:
        positions = jnp.broadcast_to(jnp.arange(start, end, dtype=jnp.int32), (2, end - start))
        hidden, cache = read(params, tokens=tokens[:, start:end], positions=positions, cache=cache)
        cache = grow_cache(cache, 27) if end == 10 else cache
        pieces.append(hidden)
    assert int(cache.length) == 27
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), full, atol=1e-4)


@pytest.mark.parametrize("last", [1, 11])
def test_the_last_columns_alone_are_the_same(model: tuple[ModelConfig, Params], last: int) -> None:
    """With padding, in several sequences of a row, and read into a cache, past the window."""
    config, params = model
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, config.vocab_size, (2, 21)), jnp.int32)
    mask = jnp.arange(21) >= jnp.asarray([[0], [4]])
    segments = jnp.repeat(jnp.asarray([[1, 2, 3]]), 7, axis=1) * jnp.ones((2, 1), jnp.int32)
    for layout in ({"padding_mask": mask}, {"segment_ids": segments}):
        whole = hidden_states(params, config, tokens, **layout)
        np.testing.assert_allclose(
            hidden_states(params, config, tokens, **layout, last=last), whole[:, -last:], atol=1e-4
        )
    positions = jnp.broadcast_to(jnp.arange(21, dtype=jnp.int32), (2, 21))
    read = jax.jit(cached_hidden_states, static_argnums=1, static_argnames="last")
    whole, filled = read(params, config, tokens, positions, init_cache(config, 2, 21))
    part, filled_by_part = read(params, config, tokens, positions, init_cache(config, 2, 21), last=last)
    np.testing.assert_allclose(part, whole[:, -last:], atol=1e-4)
    for one, other in zip(jax.tree.leaves(filled), jax.tree.leaves(filled_by_part), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_recomputing_layers_gives_the_same_gradient(model: tuple[ModelConfig, Params]) -> None:
    config, params = model
    tokens = jnp.arange(9, dtype=jnp.int32)[None]

    def loss(params: Params, remat: bool) -> jax.Array:
        return jnp.mean(forward(params, config, tokens, remat=remat) ** 2)

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    kept, recomputed = gradient(params, False), gradient(params, True)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(recomputed), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4 * float(jnp.abs(a).max()))
        assert float(jnp.abs(a).max()) > 0


def test_bfloat16_weights_give_float32_logits_near_those_of_float32() -> None:
    config = PRESETS["tiny-gemma2"]
    params = init_params(config, jax.random.key(0))
    tokens = jnp.arange(20, dtype=jnp.int32)[None]
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    with jax.numpy_dtype_promotion("strict"):
        logits = transformer.forward(half, config, tokens)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, forward(params, config, tokens), atol=0.05)


def test_initial_weights_have_the_shapes_and_the_count_of_the_config(model: tuple[ModelConfig, Params]) -> None:
    config, params = model
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda s: s.shape, param_shapes(config))
    assert sum(w.size for w in jax.tree.leaves(params)) == config.num_parameters


@pytest.mark.parametrize(
    ("name", "embedding", "rest"),
    [
        ("gemma2-2b", 590_118_912, 2_024_517_888),
        ("gemma2-9b", 917_962_752, 8_324_201_984),
        ("gemma2-27b", 1_180_237_824, 26_047_480_320),
    ],
)
def test_gemma2_presets_have_the_published_counts(name: str, embedding: int, rest: int) -> None:
    """Table 2 of the Gemma 2 report, to the unit, counted from the shapes and from the config's formula."""
    config = PRESETS[name]
    shapes = param_shapes(config)
    counted = sum(int(np.prod(s.shape)) for s in jax.tree.leaves(shapes)) - int(np.prod(shapes["embed_tokens"].shape))
    assert (config.embedding_parameters, config.non_embedding_parameters, counted) == (embedding, rest, rest)


@pytest.mark.parametrize(("name", "billions"), [("nano-1", 1.8), ("nano-2", 3.25)])
def test_nano_presets_have_the_published_totals(name: str, billions: float) -> None:
    assert PRESETS[name].num_parameters / 1e9 == pytest.approx(billions, rel=0.02)


def test_taking_layers_keeps_weights_and_kinds() -> None:
    config = PRESETS["tiny-gemma3"]
    params = init_params(config, jax.random.key(0))
    smaller, taken = take_layers(config, params, [0, 5])
    assert smaller.layer_types == ("sliding_attention", "full_attention")
    assert smaller.num_hidden_layers == 2
    np.testing.assert_array_equal(taken["layers"]["q_proj"][1], params["layers"]["q_proj"][5])
    assert taken["embed_tokens"] is params["embed_tokens"]


def test_taking_all_layers_is_the_same_model(model: tuple[ModelConfig, Params]) -> None:
    config, params = model
    same, taken = take_layers(config, params, range(config.num_hidden_layers))
    assert same == config
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), taken, params))


@pytest.mark.parametrize("layers", [[], [4], [-1]])
def test_layers_outside_the_model_are_refused(layers: list[int]) -> None:
    config = PRESETS["tiny-llama"]
    with pytest.raises(ValueError, match="from 0 to 3"):
        take_layers(config, init_params(config, jax.random.key(0)), layers)


def test_outer_layers_leave_the_middle_out() -> None:
    assert outer_layers(30, 5) == [0, 1, 2, 28, 29]
    assert outer_layers(7, 1) == [0]
    assert outer_layers(3, 3) == [0, 1, 2]
    with pytest.raises(ValueError, match="got 8 and 7"):
        outer_layers(7, 8)
