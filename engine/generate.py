"""Jitted batched generation: left-padded prompts in, completions with their log-probabilities out.

Compilation is bounded: prompt length and number of new tokens are rounded up to a few sizes, and the loop ends at the
number asked for or when every row has ended. What a row draws depends on the key, its index and its own prompt, not on
the other rows nor on the rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from attar.engine.config import ModelConfig
from attar.engine.kv_cache import KVCache, grow_cache, init_cache
from attar.engine.sampling import SamplingParams, sample_tokens
from attar.engine.sharding import constrain_cache, constrain_rows, gather_weights
from attar.engine.transformer import Params, cached_hidden_states, project_logits


class Generation(NamedTuple):
    """Completions of a batch.

    Attributes:
      tokens: int32 [B, N], the end token included, padding after it.
      lengths: int32 [B], tokens that count in each row.
      log_probs: float32 [B, N], nats under the distribution that was drawn from; 0 on padding.
    """

    tokens: Int[Array, "B N"]
    lengths: Int[Array, " B"]
    log_probs: Float[Array, "B N"]


class _State(NamedTuple):
    step: Int[Array, ""]
    token: Int[Array, " B"]
    done: Array
    cache: KVCache
    generation: Generation


def bucket_size(length: int, smallest: int = 16) -> int:
    """Rounds up to smallest * {1, 1.5, 2, 3, 4, 6, 8, ...}: at most half is wasted, and few sizes are compiled."""
    size = smallest
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size


def left_pad(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Stacks prompts with padding before them: tokens [B, T] and lengths [B].

    Raises:
      ValueError: If there is no prompt, or an empty one.
    """
    if not prompts or not all(prompts):
        raise ValueError(f"each prompt must have at least one token, got lengths {[len(p) for p in prompts]}")
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.full((len(prompts), int(lengths.max())), pad_token_id, np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[len(row) - len(prompt) :] = prompt
    return tokens, lengths


def generate(
    params: Params,
    config: ModelConfig,
    prompts: Int[Array | NDArray[np.int32], "B T"],
    prompt_lengths: Int[Array | NDArray[np.int32], " B"],
    *,
    max_new_tokens: int,
    key: Array,
    sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen, so the shared default cannot change
    eos_token_ids: Sequence[int] | None = None,
) -> Generation:
    """Continues each prompt until an end token or `max_new_tokens`.

    Args:
      prompts: Token ids with padding on the left.
      prompt_lengths: Real tokens of each row, at least 1; they stand at the right end.
      eos_token_ids: Ids that end a row; None takes the config's.

    Raises:
      ValueError: If max_new_tokens is below 1, shapes disagree, or prompt and completion exceed the context.
    """
    _check_request(config, prompts.shape, prompt_lengths.shape, max_new_tokens)
    ends = config.eos_token_ids if eos_token_ids is None else tuple(eos_token_ids)
    pad = config.pad_token_id if config.pad_token_id is not None else (ends[0] if ends else 0)
    slots = bucket_size(prompts.shape[1])
    padded = jnp.pad(jnp.asarray(prompts, jnp.int32), ((0, 0), (slots - prompts.shape[1], 0)), constant_values=pad)
    generation = _generate(
        params,
        config,
        padded,
        jnp.asarray(prompt_lengths, jnp.int32),
        jnp.int32(max_new_tokens),
        jnp.asarray(ends, jnp.int32),
        key,
        sampling=sampling,
        capacity=bucket_size(max_new_tokens),
        pad_token_id=pad,
    )
    return Generation(
        generation.tokens[:, :max_new_tokens], generation.lengths, generation.log_probs[:, :max_new_tokens]
    )


def _check_request(config: ModelConfig, prompts: tuple[int, ...], lengths: tuple[int, ...], new_tokens: int) -> None:
    if len(prompts) != 2 or lengths != prompts[:1]:
        raise ValueError(f"prompts must be [B, T] and prompt_lengths [B], got {prompts} and {lengths}")
    if new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {new_tokens}")
    if prompts[1] + new_tokens > config.max_position_embeddings:
        raise ValueError(
            f"prompt and completion must fit the context of {config.max_position_embeddings} tokens, "
            f"got {prompts[1]} and {new_tokens}; shorten the prompt or max_new_tokens"
        )


@partial(jax.jit, static_argnames=("config", "sampling", "capacity", "pad_token_id"))
def _generate(
    params: Params,
    config: ModelConfig,
    prompts: Int[Array, "B T"],
    prompt_lengths: Int[Array, " B"],
    max_new_tokens: Int[Array, ""],
    ends: Int[Array, " E"],
    key: Array,
    *,
    sampling: SamplingParams,
    capacity: int,
    pad_token_id: int,
) -> Generation:
    B, T = prompts.shape
    params = gather_weights(params, config)
    uniforms = _row_uniforms(key, B, capacity)
    positions = jnp.maximum(jnp.arange(T, dtype=jnp.int32) - (T - prompt_lengths[:, None]), -1)  # [B, T]

    def draw(hidden: Array, step: Array) -> tuple[Array, Array]:
        return sample_tokens(project_logits(params, config, hidden, constant=True), uniforms[:, step], sampling)

    def record(state: _State, token: Array, log_prob: Array) -> _State:
        """Writes column `step`: the token in rows that go on, padding in rows that have ended."""
        going = ~state.done
        token = jnp.where(going, token, pad_token_id)
        tokens = state.generation.tokens.at[:, state.step].set(token)
        log_probs = state.generation.log_probs.at[:, state.step].set(jnp.where(going, log_prob, 0.0))
        lengths = state.generation.lengths + going.astype(jnp.int32)
        done = state.done | jnp.any(token[:, None] == ends[None, :], axis=1)
        return _State(state.step + 1, token, done, state.cache, Generation(tokens, lengths, log_probs))

    def step(state: _State) -> _State:
        position = (prompt_lengths + state.step - 1)[:, None]  # [B, 1]
        hidden, cache = cached_hidden_states(params, config, state.token[:, None], position, state.cache)
        return record(state._replace(cache=cache), *draw(hidden[:, -1], state.step))

    dtype = params["embed_tokens"].dtype
    # Attend to T slots in the prefill, and make room for the completion afterwards.
    hidden, cache = cached_hidden_states(params, config, prompts, positions, init_cache(config, B, T, dtype), last=1)
    empty = Generation(
        jnp.full((B, capacity), pad_token_id, jnp.int32), jnp.zeros(B, jnp.int32), jnp.zeros((B, capacity), jnp.float32)
    )
    cache = grow_cache(cache, T + capacity)
    keys, values = constrain_cache((cache.keys, cache.values), config.num_key_value_heads)
    cache = cache._replace(keys=keys, values=values)
    first = _State(jnp.int32(0), jnp.zeros(B, jnp.int32), jnp.zeros(B, bool), cache, constrain_rows(empty))
    state = record(first, *draw(hidden[:, -1], first.step))
    state = jax.lax.while_loop(lambda s: (s.step < max_new_tokens) & ~jnp.all(s.done), step, state)
    return constrain_rows(state.generation)


def _row_uniforms(key: Array, rows: int, columns: int) -> Float[Array, "B N"]:
    """Numbers in [0, 1); entry (b, n) depends on the key, b and n alone."""
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))
    step_keys = jax.vmap(lambda k: jax.vmap(lambda n: jax.random.fold_in(k, n))(jnp.arange(columns)))(keys)
    return jax.vmap(jax.vmap(lambda k: jax.random.uniform(k)))(step_keys)
