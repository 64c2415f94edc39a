"""Packed rows: what they hold, that every example fits, and that an example's loss is the one it has alone."""

from collections import Counter
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attar.distill.batches import pad_batch
from attar.distill.counted import AnyBatch, completion_tokens, counted_weights
from attar.distill.data import DataError, Example
from attar.distill.losses import Normalization
from attar.distill.methods.gkd import Gkd
from attar.distill.methods.method import Method
from attar.distill.methods.sft import Sft
from attar.distill.mixture import Mixture
from attar.distill.packing import PackedBatch, PackedStream, best_fit, pack_rows, packed_length
from attar.distill.step import OptimizerConfig, batch_loss, init_state, make_optimizer, make_train_step
from attar.engine.config import ModelConfig
from attar.engine.presets import PRESETS
from attar.engine.transformer import Params, init_params

PAD = 0
LENGTHS = [(5, 3), (2, 6), (7, 1), (4, 4), (1, 2), (3, 9), (6, 5)]


def rows(lengths: list[tuple[int, int]], seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [
        Example(i, rng.integers(3, 250, prompt, np.int32), rng.integers(3, 250, completion, np.int32), "", "")
        for i, (prompt, completion) in enumerate(lengths, start=1)
    ]


EXAMPLES = rows(LENGTHS)
PACKED = [[EXAMPLES[0], EXAMPLES[5]], [EXAMPLES[1], EXAMPLES[2], EXAMPLES[4]], [EXAMPLES[6]], [EXAMPLES[3]]]


@lru_cache
def network(shape: ModelConfig, seed: int) -> Params:
    """Random weights whose distributions are far from uniform."""
    params = init_params(shape, jax.random.key(seed))
    return {**params, "embed_tokens": params["embed_tokens"] * (3.0 if shape.scale_embeddings else 5.0)}


def local_shape(preset: str) -> ModelConfig:
    """Two small layers; the local one of a Gemma sees four tokens."""
    shape = PRESETS[preset]
    kinds = ("sliding_attention", "full_attention") if shape.sliding_window else ("full_attention",) * 2
    return shape.replace(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        layer_types=kinds,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=4 if shape.sliding_window else None,
    )


SHAPES = {preset: local_shape(preset) for preset in ("tiny-llama", "tiny-gemma2", "tiny-gemma3")}


def test_a_row_is_laid_out_as_described() -> None:
    a = Example(1, np.array([10, 11], np.int32), np.array([12, 13], np.int32), "", "")
    b = Example(2, np.array([20, 21, 22], np.int32), np.array([23, 24], np.int32), "", "")
    batch = pack_rows([[a, b]], 9, 7)
    np.testing.assert_array_equal(batch.tokens, [[10, 11, 12, 20, 21, 22, 23, 7, 7]])
    np.testing.assert_array_equal(batch.segment_ids, [[1, 1, 1, 2, 2, 2, 2, 0, 0]])
    np.testing.assert_array_equal(batch.sources, [[1, 2, 5, 6, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.targets, [[12, 13, 23, 24, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.lengths, [[2, 2, 2, 2, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.num_sequences, [2])


@partial(jax.jit, static_argnames=("shape", "method"))
def compiled(
    params: Params, teacher: Params, shape: ModelConfig, method: Method, batch: AnyBatch, weights: jax.Array
) -> tuple[jax.Array, Params]:
    known = (teacher, shape) if method.needs_teacher else None
    return jax.value_and_grad(lambda p: batch_loss(p, shape, method, batch, weights, known))(params)


def loss_and_gradient(
    shape: ModelConfig, method: Method, batch: AnyBatch, normalization: Normalization
) -> tuple[jax.Array, Params]:
    weights = counted_weights(batch, normalization)
    return compiled(network(shape, 0), network(shape, 1), shape, method, batch, weights)


@pytest.mark.parametrize("normalization", ["sequence", "token"])
@pytest.mark.parametrize("method", [Sft(), Gkd(beta=0.3)], ids=["sft", "gkd"])
@pytest.mark.parametrize("preset", SHAPES)
def test_packed_rows_give_the_loss_and_gradient_of_padded_ones(
    preset: str, method: Method, normalization: Normalization
) -> None:
    shape = SHAPES[preset]
    padded, gradient = loss_and_gradient(shape, method, pad_batch(EXAMPLES, 8, 9, PAD), normalization)
    packed, packed_gradient = loss_and_gradient(shape, method, pack_rows(PACKED, 24, PAD), normalization)
    assert packed == pytest.approx(float(padded), rel=2e-6)
    for left, right in zip(jax.tree.leaves(packed_gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-6 * max(1.0, float(jnp.abs(right).max())))


@pytest.mark.parametrize("preset", SHAPES)
def test_an_example_does_not_feel_its_neighbours_at_all(preset: str) -> None:
    shape = SHAPES[preset]
    other = [rows([LENGTHS[0]], seed=5)[0], EXAMPLES[5]]  # another first example, of the same length

    def second_loss(row: list[Example]) -> float:
        batch = pack_rows([row, *PACKED[1:]], 24, PAD)
        only = jnp.zeros((4, 24)).at[0].set(jnp.asarray(batch.lengths)[0] == len(EXAMPLES[5].completion))
        return float(compiled(network(shape, 0), network(shape, 1), shape, Gkd(beta=0.3), batch, only)[0])

    first, second = second_loss(PACKED[0]), second_loss(other)
    assert first == second
    assert first > 0


def test_accumulation_over_packed_rows_equals_the_big_batch() -> None:
    shape, optimizer = SHAPES["tiny-llama"], make_optimizer(OptimizerConfig(learning_rate=1e-2, steps=10))
    batch, losses = pack_rows(PACKED, 24, PAD), []
    for parts in (1, 2):
        step = make_train_step(shape, None, Sft(), optimizer, accumulation_steps=parts)
        state, metrics = step(init_state(network(shape, 0), optimizer), None, batch)
        losses.append((float(metrics.loss), float(metrics.grad_norm), np.asarray(state.params["norm"])))
        assert metrics.completion_tokens == sum(completion for _, completion in LENGTHS)
    assert losses[1][:2] == pytest.approx(losses[0][:2], rel=1e-5)
    np.testing.assert_allclose(losses[1][2], losses[0][2], atol=1e-6)


def test_weights_sum_to_one_and_each_example_weighs_the_same() -> None:
    batch = pack_rows(PACKED, 24, PAD)
    weights = np.asarray(counted_weights(batch, "sequence"))
    assert weights.sum() == pytest.approx(1.0)
    assert weights[0, :3].sum() == pytest.approx(weights[0, 3:12].sum()) == pytest.approx(1 / len(LENGTHS))
    np.testing.assert_array_equal(np.asarray(completion_tokens(batch))[1, :6], EXAMPLES[1].completion)


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_places_everything_once_and_needs_few_rows(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 65, 300).tolist()
    packed = best_fit(lengths, 64)
    assert sorted(index for row in packed for index in row) == list(range(300))
    assert all(sum(lengths[i] for i in row) <= 64 for row in packed)
    assert len(packed) <= 11 / 9 * -(-sum(lengths) // 64) + 1


def stream(examples: list[Example], batch_size: int = 2, num_tokens: int = 40, seed: int = 0) -> PackedStream:
    return PackedStream(examples, Mixture([len(examples)], None, seed), batch_size, seed, num_tokens, PAD)


def many(count: int) -> list[Example]:
    rng = np.random.default_rng(3)
    return rows([(int(rng.integers(1, 15)), int(rng.integers(0, 9))) for _ in range(count)])


def test_a_stream_entered_in_the_middle_gives_the_same_batches() -> None:
    examples = many(60)
    whole = stream(examples)
    expected = [whole.batch(step) for step in range(40)]
    for step in (17, 3, 39):
        for actual, wanted in zip(stream(examples).batch(step), expected[step], strict=True):
            np.testing.assert_array_equal(actual, wanted)
    assert whole.position(0) == (0, 0)
    assert stream(examples).position(39) == whole.position(39) > (1, 0)


def drawn(batch: PackedBatch) -> Counter[bytes]:
    """Examples of a batch, each by its tokens."""
    found: Counter[bytes] = Counter()
    for tokens, segments in zip(np.asarray(batch.tokens), np.asarray(batch.segment_ids), strict=True):
        found.update(tokens[segments == segment].tobytes() for segment in range(1, segments.max() + 1))
    return found


def test_every_pass_gives_every_example_with_a_completion_once() -> None:
    examples = many(60)
    packed, seen = stream(examples), Counter[bytes]()
    for step in range(200):
        seen.update(drawn(packed.batch(step)))
    assert len(seen) == len({e.prompt.tobytes() + e.completion[:-1].tobytes() for e in examples if len(e.completion)})
    assert max(seen.values()) - min(seen.values()) <= 2  # what has been drawn and not yet placed


def test_rows_are_nearly_full() -> None:
    packed = stream(many(2000), batch_size=8, num_tokens=64)
    filled = np.mean([(packed.batch(step).segment_ids > 0).mean() for step in range(40)])
    assert filled > 0.97


def test_another_seed_gives_another_order() -> None:
    examples = many(60)
    assert not np.array_equal(stream(examples).batch(0).tokens, stream(examples, seed=1).batch(0).tokens)


def test_rows_that_cannot_be_filled_are_refused() -> None:
    with pytest.raises(DataError, match="pack_tokens must be at least the longest example, got 10: the one at line 6"):
        stream(EXAMPLES, num_tokens=10)
    with pytest.raises(DataError, match="lower batch_size or pack_tokens"):
        stream(EXAMPLES, batch_size=8, num_tokens=40)
    assert packed_length(EXAMPLES[5]) == 11
