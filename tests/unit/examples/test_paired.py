"""Intervals over seeds against independent computations."""

import math

import numpy as np
import pytest
from examples.paired import Estimate, gain_ratio, mean_over_seeds, spell
from scipy import stats


def test_the_mean_has_students_interval() -> None:
    values = [1.0, 2.5, 3.0, 0.5, 2.0]
    estimate = mean_over_seeds(values)
    assert estimate.value == pytest.approx(1.8)
    assert [estimate.low, estimate.high] == pytest.approx(stats.t.interval(0.95, 4, 1.8, stats.sem(values)))


def test_one_seed_tells_no_interval() -> None:
    assert mean_over_seeds([2.0]) == Estimate(2.0, -math.inf, math.inf)
    assert gain_ratio([2.0], [1.0]) == Estimate(2.0, -math.inf, math.inf)
    assert spell(gain_ratio([2.0], [1.0])) == "2.00 [any]"


def test_the_ratios_interval_holds_the_ratios_that_a_t_test_does_not_refuse() -> None:
    gains, baseline = np.array([4.0, 5.5, 3.5, 6.0, 4.5]), np.array([2.0, 2.6, 2.1, 2.9, 1.9])
    estimate = gain_ratio(gains.tolist(), baseline.tolist())
    assert estimate.value == pytest.approx(gains.mean() / baseline.mean())
    for bound in (estimate.low, estimate.high):
        rest = gains - bound * baseline
        assert 2 * stats.t.sf(abs(rest.mean() / stats.sem(rest)), 4) == pytest.approx(0.05)
    assert estimate.low < estimate.value < estimate.high


def test_a_baseline_that_may_be_zero_bounds_no_ratio() -> None:
    estimate = gain_ratio([4.0, 5.5, 3.5], [0.1, -0.1, 0.05])
    assert (estimate.low, estimate.high) == (-math.inf, math.inf)
