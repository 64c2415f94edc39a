"""Generation: stops at ends, equals the uncached argmax, and each row depends on itself alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attar.engine import transformer
from attar.engine.config import ModelConfig
from attar.engine.generate import bucket_size, generate, left_pad
from attar.engine.presets import PRESETS
from attar.engine.sampling import GREEDY, SamplingParams
from attar.engine.transformer import Params

forward = jax.jit(transformer.forward, static_argnums=1)
PROMPTS = [[2, 5, 9], [2, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39]]
NEVER: tuple[int, ...] = ()


@pytest.fixture(scope="module")
def model() -> tuple[ModelConfig, Params]:
    """Two layers, local and global, with weights large enough for varied choices."""
    config = PRESETS["tiny-gemma2"].replace(
        num_hidden_layers=2, layer_types=("sliding_attention", "full_attention"), vocab_size=300
    )
    params = jax.jit(transformer.init_params, static_argnums=0)(config, jax.random.key(3))
    return config, jax.tree.map(lambda w: w * 8 if w.ndim > 1 else w, params)


def run(model: tuple[ModelConfig, Params], prompts: list[list[int]], tokens: int, **options: object) -> np.ndarray:  # type: ignore[type-arg]  # an int32 matrix
    padded, lengths = left_pad(prompts, 0)
    settings = {"key": jax.random.key(0), "sampling": GREEDY, "eos_token_ids": NEVER, **options}
    return np.asarray(generate(*reversed(model), padded, lengths, max_new_tokens=tokens, **settings).tokens)  # type: ignore[arg-type]  # keyword options of mixed types


def test_greedy_equals_argmax_of_the_full_forward_past_the_window(model: tuple[ModelConfig, Params]) -> None:
    config, params = model
    new = run(model, PROMPTS, 20)
    for row, prompt in zip(new, PROMPTS, strict=True):
        sequence = jnp.asarray([[*prompt, *row]], jnp.int32)
        best = np.asarray(jnp.argmax(forward(params, config, sequence), axis=-1))[0]
        np.testing.assert_array_equal(row, best[len(prompt) - 1 : -1])


def test_a_row_is_the_same_alone_and_in_a_batch(model: tuple[ModelConfig, Params]) -> None:
    drawn = SamplingParams(temperature=1.0, top_k=40)
    for sampling in (GREEDY, drawn):
        together = run(model, PROMPTS, 20, sampling=sampling)
        alone = run(model, PROMPTS[:1], 20, sampling=sampling)
        np.testing.assert_array_equal(together[0], alone[0])


def test_stops_at_the_end_token_and_pads(model: tuple[ModelConfig, Params]) -> None:
    config, params = model
    free = run(model, PROMPTS, 20)
    end = int(free[0, 4])
    first = int(np.flatnonzero(free[0] == end)[0])
    padded, lengths = left_pad(PROMPTS, 0)
    generation = generate(
        params, config, padded, lengths, max_new_tokens=20, key=jax.random.key(0), sampling=GREEDY, eos_token_ids=[end]
    )
    tokens = np.asarray(generation.tokens)
    assert int(generation.lengths[0]) == first + 1
    np.testing.assert_array_equal(tokens[0, : first + 1], free[0, : first + 1])
    assert (tokens[0, first + 1 :] == config.pad_token_id).all()
    others = int(generation.lengths[1])
    assert others == 20 or tokens[1, others - 1] == end
    np.testing.assert_array_equal(tokens[1, :others], free[1, :others])


def test_log_probs_are_those_of_the_model_at_the_sampled_tokens(model: tuple[ModelConfig, Params]) -> None:
    config, params = model
    padded, lengths = left_pad(PROMPTS, 0)
    generation = generate(
        params,
        config,
        padded,
        lengths,
        max_new_tokens=20,
        key=jax.random.key(5),
        sampling=SamplingParams(temperature=0.7),
        eos_token_ids=NEVER,
    )
    for i, prompt in enumerate(PROMPTS):
        row = np.asarray(generation.tokens)[i]
        logits = forward(params, config, jnp.asarray([[*prompt, *row]], jnp.int32))[0, len(prompt) - 1 : -1]
        expected = jax.nn.log_softmax(logits / 0.7)[np.arange(20), row]
        np.testing.assert_allclose(generation.log_probs[i], expected, atol=1e-4)


def test_keys_decide_what_is_drawn(model: tuple[ModelConfig, Params]) -> None:
    sampling = SamplingParams(temperature=1.0)
    one, same, other = (run(model, PROMPTS, 20, sampling=sampling, key=jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_fewer_tokens_are_a_prefix_of_more(model: tuple[ModelConfig, Params]) -> None:
    sampling = SamplingParams(temperature=1.0)
    few, many = run(model, PROMPTS, 3, sampling=sampling), run(model, PROMPTS, 20, sampling=sampling)
    np.testing.assert_array_equal(few, many[:, :3])


def test_requests_that_cannot_be_served_are_refused(model: tuple[ModelConfig, Params]) -> None:
    with pytest.raises(ValueError, match="context of 256 tokens, got 11 and 250"):
        run(model, PROMPTS, 250)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        run(model, PROMPTS, 0)
    with pytest.raises(ValueError, match="at least one token"):
        left_pad([[1], []], 0)


def test_buckets_grow_by_half_octaves() -> None:
    sizes = sorted({bucket_size(n) for n in range(1, 200)})
    assert sizes == [16, 24, 32, 48, 64, 96, 128, 192, 256]
    assert all(bucket_size(n) >= n for n in range(1, 2000))
