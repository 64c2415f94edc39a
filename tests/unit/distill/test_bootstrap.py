"""Bootstrap intervals and paired differences, of means and of functions of sums."""

import numpy as np
import pytest

from attar.distill.bootstrap import (
    Figure,
    bootstrap_interval,
    figure_difference,
    figure_interval,
    mean_figure,
    paired_bootstrap,
    ratio,
)


def test_interval_covers_the_mean_at_the_stated_rate() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        interval = bootstrap_interval(rng.normal(3.0, 2.0, 60), resamples=300, seed=trial)
        covered += interval.low <= 3.0 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_interval_matches_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(size=4000)
    interval = bootstrap_interval(values)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / np.sqrt(4000), rel=0.05)


def test_intervals_are_reproducible_and_degenerate_where_nothing_varies() -> None:
    assert bootstrap_interval([0.0, 1.0, 5.0]) == bootstrap_interval([0.0, 1.0, 5.0])
    constant = bootstrap_interval([2.0, 2.0])
    assert (constant.low, constant.mean, constant.high) == (2.0, 2.0, 2.0)


def test_intervals_need_values_and_a_confidence() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval([np.nan])
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        bootstrap_interval([1.0], confidence=95)


def test_examples_that_were_not_measured_do_not_count() -> None:
    assert bootstrap_interval([1.0, np.nan, 4.0, np.nan]) == bootstrap_interval([1.0, 4.0])


def test_a_ratio_of_sums_weighs_examples_by_their_size() -> None:
    figure = Figure(np.array([[1.0, 1.0], [0.0, 9.0]]), ratio)
    interval = figure_interval(figure)
    assert interval.mean == pytest.approx(0.1)
    assert (interval.low, interval.high) == (0.0, 1.0)  # of two examples, a resample may hold one of them twice


def test_a_difference_by_hand() -> None:
    # Of two pairs a resample holds both with probability 1/2, and each of them twice with 1/4.
    found = paired_bootstrap([0.0, 0.0], [1.0, 3.0], resamples=4000)
    assert (found.mean, found.low, found.high, found.num_examples) == (2.0, 1.0, 3.0, 2)
    assert found.p_value == 2 / 4001  # never on the other side of 0


def test_the_p_value_counts_resamples_on_the_other_side() -> None:
    # The mean difference is not above 0 only where the resample holds the second pair twice: a quarter of them.
    found = paired_bootstrap([0.0, 1.0], [3.0, 0.0], resamples=20_000)
    assert found.mean == pytest.approx(1.0)
    assert found.p_value == pytest.approx(2 / 4, abs=0.02)


def test_pairing_sees_a_small_gain_on_examples_that_vary_much() -> None:
    rng = np.random.default_rng(2)
    first = rng.normal(0.0, 10.0, 200)
    found = paired_bootstrap(first, first + rng.normal(0.3, 0.5, 200))
    assert 0 < found.low < 0.3 < found.high < 0.5
    assert found.p_value < 0.01


def test_under_no_difference_p_values_are_spread_evenly() -> None:
    rng = np.random.default_rng(3)
    values = [paired_bootstrap(rng.normal(size=50), rng.normal(size=50), resamples=200).p_value for _ in range(300)]
    assert np.mean(np.array(values) < 0.1) == pytest.approx(0.1, abs=0.05)
    assert np.mean(values) == pytest.approx(0.5, abs=0.07)


def test_equal_models_do_not_differ() -> None:
    values = np.random.default_rng(4).normal(size=31)
    found = paired_bootstrap(values, values.copy())
    assert (found.mean, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_differences_of_a_figure_that_is_no_mean() -> None:
    def perplexity(sums: np.ndarray) -> np.ndarray:
        return np.exp(ratio(sums))

    tokens = np.array([10.0, 30.0, 20.0])
    figures = [Figure(np.stack([nats * tokens, tokens], 1), perplexity) for nats in (1.0, 2.0)]
    found = figure_difference(figures[0], figures[1])
    assert found.mean == pytest.approx(np.exp(2) - np.exp(1))
    assert found.low == pytest.approx(found.high)


def test_only_pairs_count() -> None:
    found = paired_bootstrap([1.0, np.nan, 2.0, 5.0], [2.0, 7.0, 3.0, np.nan])
    assert (found.mean, found.num_examples) == (1.0, 2)
    with pytest.raises(ValueError, match="at least two pairs, got 1"):
        paired_bootstrap([1.0, np.nan], [2.0, 7.0])
    with pytest.raises(ValueError, match="equal numbers of examples, got 1 and 2"):
        paired_bootstrap([1.0], [2.0, 7.0])
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 0"):
        figure_difference(mean_figure([1, 2]), mean_figure([1, 2]), confidence=0)
