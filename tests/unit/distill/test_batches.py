"""Order, buckets and padding of batches."""

from itertools import combinations

import numpy as np
import pytest

from attar.distill.batches import BatchStream, Buckets, choose_bounds, choose_buckets, pad_batch, plan_batches
from attar.distill.data import DataError, DataSet, Example, Limits
from attar.distill.mixture import Mixture

PAD = 9


def example(prompt: int, completion: int, index: int = 0) -> Example:
    tokens = np.arange(prompt, dtype=np.int32) + 100 * index
    return Example(index, tokens, np.arange(completion, dtype=np.int32), "", "")


def examples(count: int) -> list[Example]:
    rng = np.random.default_rng(0)
    return [example(int(rng.integers(1, 50)), int(rng.integers(0, 20)), i) for i in range(count)]


def buckets_of(rows: list[Example]) -> Buckets:
    return choose_buckets(DataSet(tuple(rows), Limits(45, 20), 0, ""), 3, 2)


def test_rows_are_padded_left_and_right() -> None:
    batch = pad_batch([example(2, 1), example(3, 0)], 4, 2, PAD)
    np.testing.assert_array_equal(batch.prompts, [[PAD, PAD, 0, 1], [PAD, 0, 1, 2]])
    np.testing.assert_array_equal(batch.completions, [[0, PAD], [PAD, PAD]])
    np.testing.assert_array_equal(batch.prompt_lengths, [2, 3])
    np.testing.assert_array_equal(batch.completion_lengths, [1, 0])


def stream(rows: list[Example], batch_size: int, buckets: Buckets, seed: int = 1) -> BatchStream:
    return BatchStream(rows, Mixture([len(rows)], None, seed), batch_size, seed, buckets, PAD)


def drawn(batches: BatchStream, steps: range) -> list[int]:
    """Examples of the steps by their number, which their first tokens tell."""
    firsts = []
    for step in steps:
        batch = batches.batch(step)
        first = batch.prompts.shape[1] - np.asarray(batch.prompt_lengths)
        firsts += [int(row[at]) // 100 for row, at in zip(batch.prompts, first, strict=True)]
    return firsts


def test_each_pass_visits_every_example_once() -> None:
    rows = [example(len(row.prompt) % 45 + 1, len(row.completion), i) for i, row in enumerate(examples(60))]
    batches = stream(rows, 8, buckets_of(rows))  # stretches of seven batches
    counts = np.bincount(drawn(batches, range(28)), minlength=60)
    assert counts.sum() == 28 * 8
    assert (counts.min(), counts.max()) == (3, 4)  # 224 draws of 60 examples


def test_every_row_fits_its_batch_and_shapes_are_few() -> None:
    rows = [example(len(row.prompt) % 45 + 1, len(row.completion), i) for i, row in enumerate(examples(200))]
    buckets = buckets_of(rows)
    batches = stream(rows, 4, buckets)
    for step in range(50):
        batch = batches.batch(step)
        assert batch.prompts.shape[1] in buckets.prompt
        assert batch.completions.shape[1] in buckets.completion
        assert (batch.prompt_lengths <= batch.prompts.shape[1]).all()


def test_batches_hold_one_shape_as_far_as_possible() -> None:
    shapes = {i: ((8, 8), (16, 8), (16, 16))[i % 3] for i in range(40)}
    plan = plan_batches(range(40), shapes, 4, np.random.default_rng(0))
    assert sorted(index for planned in plan for index in planned.indices) == list(range(40))
    mixed = [planned for planned in plan if len({shapes[i] for i in planned.indices}) > 1]
    assert len(plan) == 10
    assert len(mixed) <= 2


def test_order_depends_on_the_seed() -> None:
    rows = [example(len(row.prompt), len(row.completion), i) for i, row in enumerate(examples(40))]
    buckets = Buckets((56,), (24,))
    first = drawn(stream(rows, 4, buckets), range(10))
    assert first == drawn(stream(rows, 4, buckets), range(10))
    assert first != drawn(stream(rows, 4, buckets, seed=2), range(10))


def test_a_stream_entered_in_the_middle_gives_the_same_batches() -> None:
    rows = examples(22)
    buckets = Buckets((56,), (24,))
    whole = stream(rows, 4, buckets)
    expected = [whole.batch(step) for step in range(12)]  # two passes and a part
    for step in (7, 3, 11):
        for actual, wanted in zip(stream(rows, 4, buckets).batch(step), expected[step], strict=True):
            np.testing.assert_array_equal(actual, wanted)
    assert whole.position(11) == (2, 0)


def test_fewer_examples_than_rows_are_refused() -> None:
    with pytest.raises(DataError, match="batch_size must be at most the number of examples, got 4 and 3"):
        stream(examples(3), 4, Buckets((56,), (24,)))


@pytest.mark.parametrize("num_buckets", [1, 2, 3])
def test_bounds_pad_least(num_buckets: int) -> None:
    lengths = [len(row.prompt) for row in examples(60)]

    def padded(bounds: tuple[int, ...]) -> int:
        return sum(min(bound for bound in bounds if bound >= length) for length in lengths)

    candidates = sorted({-(-length // 8) * 8 for length in lengths})
    choices = [(*inner, candidates[-1]) for inner in combinations(candidates[:-1], num_buckets - 1)]
    bounds = choose_bounds(lengths, num_buckets)
    assert len(bounds) == num_buckets
    assert padded(bounds) == min(padded(choice) for choice in choices)


def test_bounds_do_not_pass_the_largest_allowed_length() -> None:
    assert choose_bounds([3, 20, 21], 2, largest=21) == (8, 21)
    assert choose_bounds([0], 4) == (8,)
