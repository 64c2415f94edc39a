"""Sampled batches: what takes the place of the data's completions."""

import jax
import numpy as np
import pytest

from attar.distill.batches import Batch, pad_batch
from attar.distill.data import Example
from attar.distill.rollout import sample_batch
from attar.engine.config import ModelConfig
from attar.engine.sampling import SamplingParams
from attar.engine.transformer import Params, init_params

N = 8


@pytest.fixture(scope="module")
def params(shape: ModelConfig) -> Params:
    return init_params(shape, jax.random.key(0))


def batch(completion: int) -> Batch:
    rows = [Example(i, np.arange(3, 6 + i, dtype=np.int32), np.full(2, completion, np.int32), "", "") for i in range(4)]
    return pad_batch(rows, 8, 8, 0)


def sample(params: Params, shape: ModelConfig, rows: Batch, ends: tuple[int, ...], seed: int = 0) -> Batch:
    return sample_batch(
        params,
        shape,
        rows,
        max_new_tokens=N,
        sampling=SamplingParams(),
        eos_token_ids=ends,
        key=jax.random.key(seed),
    )


def test_prompts_stay_and_completions_are_drawn(params: Params, shape: ModelConfig) -> None:
    first, again, other = (
        sample(params, shape, batch(completion), (2,), seed) for completion, seed in ((7, 0), (9, 0), (7, 1))
    )
    np.testing.assert_array_equal(first.prompts, batch(7).prompts)
    np.testing.assert_array_equal(first.prompt_lengths, [3, 4, 5, 6])
    np.testing.assert_array_equal(first.completions, again.completions)  # the data's completions are not read
    assert (np.asarray(first.completions) != np.asarray(other.completions)).any()
    assert first.completions.shape == (4, N)


def test_the_end_token_counts_and_nothing_after_it(params: Params, shape: ModelConfig) -> None:
    free = np.asarray(sample(params, shape, batch(7), (2,)).completions)
    end = int(free[0, 3])
    ended = sample(params, shape, batch(7), (end,))
    first = [row.tolist().index(end) + 1 if end in row else N for row in free]
    np.testing.assert_array_equal(ended.completion_lengths, first)
    for row, wanted, length in zip(np.asarray(ended.completions), free, first, strict=True):
        np.testing.assert_array_equal(row[:length], wanted[:length])
