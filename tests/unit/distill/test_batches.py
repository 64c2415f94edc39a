"""Order, buckets and padding of batches."""

from itertools import combinations

import numpy as np
import pytest

from attar.distill.batches import BatchStream, Buckets, choose_bounds, choose_buckets, pad_batch, plan_epoch
from attar.distill.data import DataError, DataSet, Example, Limits

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


def test_an_epoch_visits_examples_at_most_once_and_leaves_less_than_a_batch() -> None:
    rows = [example(len(row.prompt) % 45 + 1, len(row.completion), i) for i, row in enumerate(examples(107))]
    plan = plan_epoch(rows, 8, 3, 0, buckets_of(rows))
    seen = [index for planned in plan for index in planned.indices]
    assert len(plan) == 13
    assert len(seen) == len(set(seen)) == 104


def test_every_row_fits_its_batch_and_shapes_are_few() -> None:
    rows = [example(len(row.prompt) % 45 + 1, len(row.completion), i) for i, row in enumerate(examples(200))]
    buckets = buckets_of(rows)
    for planned in plan_epoch(rows, 4, 0, 0, buckets):
        assert planned.prompt_tokens in buckets.prompt
        assert planned.completion_tokens in buckets.completion
        for index in planned.indices:
            assert len(rows[index].prompt) <= planned.prompt_tokens
            assert len(rows[index].completion) <= planned.completion_tokens


def test_order_depends_on_seed_and_epoch_alone() -> None:
    rows = examples(40)
    buckets = Buckets((56,), (24,))
    plan = plan_epoch(rows, 4, 5, 2, buckets)
    assert plan == plan_epoch(rows, 4, 5, 2, buckets)
    assert plan != plan_epoch(rows, 4, 5, 3, buckets)
    assert plan != plan_epoch(rows, 4, 6, 2, buckets)


def test_a_stream_entered_in_the_middle_gives_the_same_batches() -> None:
    rows = examples(22)
    buckets = Buckets((56,), (24,))
    whole, entered = (BatchStream(rows, 4, 1, buckets, PAD) for _ in range(2))
    expected = [whole.batch(step) for step in range(12)]  # two epochs and a part
    for step in (7, 3, 11):
        for actual, wanted in zip(entered.batch(step), expected[step], strict=True):
            np.testing.assert_array_equal(actual, wanted)
    assert whole.position(11) == (2, 1)


def test_fewer_examples_than_rows_are_refused() -> None:
    with pytest.raises(DataError, match="batch_size must be at most the number of examples, got 4 and 3"):
        BatchStream(examples(3), 4, 0, Buckets((56,), (24,)), PAD)


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
