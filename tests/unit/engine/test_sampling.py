"""Sampling: what is kept, how often each token is drawn, and the log-probability that goes with it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attar.engine.sampling import SamplingParams, invert_cdf, sample_tokens

draw = jax.jit(sample_tokens, static_argnums=2)
UNIFORMS = (np.arange(4000, dtype=np.float32) + 0.5) / 4000  # evenly spread, so frequencies are exact to 1 / 4000


def frequencies(logits: list[float], sampling: SamplingParams) -> np.ndarray:  # type: ignore[type-arg]  # a float vector
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (len(UNIFORMS), len(logits)))
    tokens, log_probs = draw(rows, jnp.asarray(UNIFORMS), sampling)
    shares = np.bincount(tokens, minlength=len(logits)) / len(UNIFORMS)
    np.testing.assert_allclose(np.exp(log_probs), shares[tokens], atol=1e-3)  # reported = realised
    return shares


LOGITS = [float(x) for x in np.log([0.05, 0.4, 0.1, 0.3, 0.15])]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingParams(), [0.05, 0.4, 0.1, 0.3, 0.15]),
        (SamplingParams(top_k=2), [0, 4 / 7, 0, 3 / 7, 0]),
        (SamplingParams(top_k=99), [0.05, 0.4, 0.1, 0.3, 0.15]),
        (SamplingParams(top_p=0.65), [0, 4 / 7, 0, 3 / 7, 0]),
        (SamplingParams(top_p=0.75), [0, 8 / 17, 0, 6 / 17, 3 / 17]),
        (SamplingParams(top_p=1e-6), [0, 1, 0, 0, 0]),
        (SamplingParams(top_k=3, top_p=0.8), [0, 4 / 7, 0, 3 / 7, 0]),  # the top 3 renormalised: .47, .35, .18
        (SamplingParams(temperature=0.5), np.square([0.05, 0.4, 0.1, 0.3, 0.15]) / 0.285),
        (SamplingParams(temperature=0.0), [0, 1, 0, 0, 0]),
    ],
)
def test_frequencies(sampling: SamplingParams, expected: list[float]) -> None:
    np.testing.assert_allclose(frequencies(LOGITS, sampling), expected, atol=1e-3)


def test_top_1_is_greedy_even_among_equals() -> None:
    logits = jnp.asarray([[1.0, 3.0, 3.0, 2.0]] * 3)
    uniforms = jnp.asarray([0.0, 0.5, 0.999])
    for sampling in (SamplingParams(top_k=1), SamplingParams(temperature=0.0)):
        assert draw(logits, uniforms, sampling)[0].tolist() == [1, 1, 1]


def test_extreme_uniforms_never_draw_an_impossible_token() -> None:
    """The last float below 1 and 0 itself, over more columns than one block, with zeros at both ends."""
    probs = np.zeros((2, 1000), np.float32)
    probs[:, 10:990] = 1 / 980
    uniforms = jnp.asarray([0.0, np.nextafter(np.float32(1), np.float32(0))])
    assert invert_cdf(jnp.asarray(probs), uniforms).tolist() == [10, 989]


def test_inverse_cdf_equals_searching_the_cumulative_sum() -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(700, 0.3), size=50).astype(np.float32)
    uniforms = rng.random(50).astype(np.float32)
    exact = [
        int(np.searchsorted(np.cumsum(p.astype(np.float64)), u, side="right"))
        for p, u in zip(probs, uniforms, strict=True)
    ]
    found = invert_cdf(jnp.asarray(probs), jnp.asarray(uniforms))
    assert sum(a != b for a, b in zip(found.tolist(), exact, strict=True)) <= 1  # rounding at an edge


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"top_p": 0.0}, "top_p must lie in"),
        ({"top_p": 1.1}, "top_p must lie in"),
    ],
)
def test_settings_outside_their_range_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**values)  # type: ignore[arg-type]  # top_k comes as a float on purpose
