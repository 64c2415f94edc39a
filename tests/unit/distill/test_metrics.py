"""ROUGE, exact match and bootstrap intervals."""

import numpy as np
import pytest

from attar.distill.metrics import bootstrap_interval, exact_match, rouge


def test_rouge_by_hand() -> None:
    # 3 of 4 words are shared, in order; of 3 bigrams, "the cat" alone.
    scores = rouge(["the cat sat down"], ["the cat lay down"])
    assert scores["rouge1"][0] == pytest.approx(3 / 4)
    assert scores["rouge2"][0] == pytest.approx(1 / 3)
    assert scores["rougeL"][0] == pytest.approx(3 / 4)


def test_rouge_ignores_case_and_inflection() -> None:
    assert rouge(["Running TOOLS"], ["running tool"])["rougeL"][0] == 1.0


def test_an_empty_text_scores_zero() -> None:
    assert rouge([""], ["a reference"])["rougeL"][0] == 0.0


def test_exact_match_ignores_blanks_at_the_ends() -> None:
    np.testing.assert_array_equal(exact_match([" a  b\n", "a", ""], ["a b", "A", ""]), [1.0, 0.0, 1.0])


def test_each_text_needs_its_reference() -> None:
    with pytest.raises(ValueError, match="one reference per text, got 2 for 1"):
        rouge(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="one reference per text, got 0 for 1"):
        exact_match(["a"], [])


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
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        bootstrap_interval([1.0], confidence=95)
