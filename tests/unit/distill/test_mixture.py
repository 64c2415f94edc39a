"""Shares, orders and entering in the middle, against drawing one after the other."""

from collections import Counter
from fractions import Fraction

import pytest

from attar.distill.mixture import Mixture


def one_by_one(weights: list[float], draws: int) -> list[int]:
    """Sources in the order of their due times, by the definition."""
    shares = [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    due = sorted((Fraction(2 * m + 1, 2) / share, j) for j, share in enumerate(shares) for m in range(draws))
    return [source for _, source in due[:draws]]


@pytest.mark.parametrize("weights", [[0.7, 0.3], [1.0, 1.0, 1.0], [0.01, 5.0, 2.5, 0.3], [3.0]])
def test_counts_are_those_of_drawing_in_order(weights: list[float]) -> None:
    mixture, order = Mixture([10] * len(weights), weights, 0), one_by_one(weights, 300)
    for draws in range(301):
        counted = Counter(order[:draws])
        assert mixture.counts(draws) == tuple(counted[j] for j in range(len(weights)))


@pytest.mark.parametrize("weights", [[0.7, 0.3], [0.01, 5.0, 2.5, 0.3]])
def test_shares_hold_within_any_stretch(weights: list[float]) -> None:
    mixture, total = Mixture([10] * len(weights), weights, 0), sum(weights)
    for start in (0, 7, 10**9 + 3):
        for length in (10, 100, 5000):
            before, after = mixture.counts(start), mixture.counts(start + length)
            for j, weight in enumerate(weights):
                share = weight / total
                assert abs(after[j] - before[j] - share * length) <= 1 + len(weights) * share


def test_every_source_is_passed_through_in_its_own_order() -> None:
    mixture = Mixture([5, 30], [1.0, 2.0], 3)
    drawn = mixture.draws(0, 90)
    small, large = [i for i in drawn if i < 5], [i for i in drawn if i >= 5]
    assert (len(small), len(large)) == (30, 60)
    assert all(sorted(small[at : at + 5]) == list(range(5)) for at in range(0, 30, 5))
    assert all(sorted(large[at : at + 30]) == list(range(5, 35)) for at in range(0, 60, 30))
    assert small[:5] != small[5:10] or large[:30] != large[30:]
    assert drawn != Mixture([5, 30], [1.0, 2.0], 4).draws(0, 90)


def test_stretches_join_without_a_seam() -> None:
    mixture = Mixture([4, 9], [1.0, 3.0], 0)
    whole = mixture.draws(0, 70)
    pieces = [Mixture([4, 9], [1.0, 3.0], 0).draws(at, at + 7) for at in range(0, 70, 7)]
    assert Counter(whole) == Counter(index for piece in pieces for index in piece)


def test_without_weights_sources_are_drawn_by_their_size() -> None:
    assert sorted(Mixture([2, 5], None, 0).draws(0, 7)) == list(range(7))


@pytest.mark.parametrize(("sizes", "weights"), [([0, 3], [1.0, 1.0]), ([3], [0.0]), ([3, 3], [1.0]), ([], [])])
def test_mixtures_that_make_no_sense(sizes: list[int], weights: list[float]) -> None:
    with pytest.raises(ValueError, match="got"):
        Mixture(sizes, weights, 0)
