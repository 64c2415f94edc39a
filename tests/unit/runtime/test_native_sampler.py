"""The sampler's choices against probabilities worked out in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from attar.runtime.native import NativeSampler
from attar.runtime.session import SessionError

Floats = NDArray[np.float64]
DRAWS = 20_000


def draws(logits: Floats, n: int, **settings: Any) -> NDArray[np.int64]:
    sampler = NativeSampler(len(logits), **settings)
    row = logits.astype(np.float32)
    return np.array([sampler.draw(row) for _ in range(n)])


def expected(logits: Floats, temperature: float, top_k: int, top_p: float, min_p: float) -> Floats:
    """Probabilities after top_k, then top_p of what is left, then min_p; ties go to the lowest id."""
    p = np.exp((logits - logits.max()) / temperature)
    order = np.lexsort((np.arange(len(p)), -logits))
    kept = order[:top_k] if top_k else order
    before = np.cumsum(p[kept]) - p[kept]
    kept = kept[(before < top_p * p[kept].sum()) & (p[kept] >= min_p)]
    q = np.zeros_like(p)
    q[kept] = p[kept]
    return q / q.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.5, 0, 1.0, 0.0),
        (2.0, 5, 1.0, 0.0),
        (1.0, 0, 0.7, 0.0),
        (1.0, 0, 1.0, 0.2),
        (1.3, 8, 0.8, 0.1),
    ],
)
def test_frequencies_are_the_filtered_probabilities(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    logits = np.random.default_rng(3).normal(0.0, 1.5, 40).astype(np.float32).astype(np.float64)
    p = expected(logits, temperature, top_k, top_p, min_p)
    got = draws(logits, DRAWS, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=5)
    counts = np.bincount(got, minlength=len(p))
    assert not counts[p == 0].any()
    assert (counts[p > 20 / DRAWS] > 0).all()
    # Six standard deviations; the seed is fixed, so this either always holds or never does.
    assert (np.abs(counts - DRAWS * p) <= 6 * np.sqrt(DRAWS * p * (1 - p)) + 1e-9).all()


def test_greedy_takes_the_largest_and_the_lowest_id_of_ties() -> None:
    assert set(draws(np.array([0.0, 2.0, -1.0, 2.0]), 10, temperature=0.0)) == {1}


def test_top_k_of_one_is_greedy_whatever_the_temperature() -> None:
    assert set(draws(np.array([0.0, 2.0, -1.0, 2.0]), 50, temperature=5.0, top_k=1)) == {1}


def test_nearly_nothing_of_top_p_still_keeps_the_likeliest() -> None:
    assert set(draws(np.array([0.1, 0.0, 0.2]), 50, temperature=1.0, top_p=1e-6)) == {2}


def test_the_same_seed_draws_the_same_tokens() -> None:
    logits = np.random.default_rng(0).normal(size=100)
    one, two, other = (draws(logits, 200, seed=seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


def test_known_draws() -> None:
    """Pins the generator and the order of the draws, so that a seed means the same in every release."""
    logits = np.linspace(-2.0, 2.0, 16)
    assert draws(logits, 8, seed=1234).tolist() == [14, 12, 15, 1, 14, 12, 11, 15]
    assert draws(logits, 8, seed=1234, top_p=0.8).tolist() == [12, 14, 10, 15, 12, 14, 15, 11]


@pytest.mark.parametrize(
    ("logits", "token"),
    [
        ([np.nan, 1.0, 500.0], 2),
        ([np.nan, np.nan], 0),
        ([-np.inf, -np.inf], 0),
        ([0.0, np.inf, 3.0], 1),
        ([-np.inf, -1000.0, np.nan], 1),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_p": 0.5}, {"top_k": 2}])
def test_logits_that_are_not_numbers_never_win(logits: list[float], token: int, settings: dict[str, float]) -> None:
    assert set(draws(np.array(logits), 20, **settings)) == {token}


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"temperature": -1.0}, r"temperature must be 0 \(greedy\) or more, got -1"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"top_k": -1}, r"top_k must be 0 \(keep all\) or more, got -1"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0"),
        ({"top_p": 1.5}, r"top_p must be above 0 and at most 1, got 1\.5"),
        ({"min_p": 2.0}, "min_p must be 0 to 1, got 2"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], pattern: str) -> None:
    with pytest.raises(SessionError, match=pattern):
        NativeSampler(10, **settings)


def test_logits_of_another_length() -> None:
    with pytest.raises(SessionError, match=r"logits must have shape \(10,\), got \(11,\)"):
        NativeSampler(10).draw(np.zeros(11, np.float32))
