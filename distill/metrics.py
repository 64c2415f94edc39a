"""Scores of texts and their uncertainty: ROUGE, exact match, bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rouge_score import rouge_scorer

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
_CHUNK = 1 << 22  # numbers drawn at a time by the bootstrap, to bound memory


@dataclass(frozen=True)
class Interval:
    """A mean with a bootstrap percentile interval."""

    mean: float
    low: float
    high: float


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L of each pair, in [0, 1], with Porter stemming.

    Returns:
      One array [len(predictions)] for each name in `ROUGE_TYPES`.

    Raises:
      ValueError: If the two sequences differ in length.

    References:
      Lin, 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"; computed by the package rouge-score.
    """
    _check_pairs(predictions, references)
    scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    scores = [scorer.score(reference, text) for text, reference in zip(predictions, references, strict=True)]
    return {name: np.array([score[name].fmeasure for score in scores], np.float64) for name in ROUGE_TYPES}


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """1 where the texts are equal apart from blanks at their ends and in runs, else 0; [len(predictions)].

    Raises:
      ValueError: If the two sequences differ in length.
    """
    _check_pairs(predictions, references)
    pairs = zip(predictions, references, strict=True)
    return np.array([float(text.split() == reference.split()) for text, reference in pairs], np.float64)


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of the values and the percentile interval of the means of resamples with replacement.

    Args:
      values: One number per independent unit (example, not token), at least one.
      confidence: Mass of the interval, in (0, 1).

    Raises:
      ValueError: If there are no values or the confidence is outside (0, 1).

    References:
      Efron, 1979, "Bootstrap Methods: Another Look at the Jackknife".
    """
    array = np.asarray(values, np.float64).reshape(-1)
    if array.size == 0:
        raise ValueError("a bootstrap interval needs at least one value, got none")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // array.size)
    means = np.concatenate(
        [
            array[rng.integers(0, array.size, (min(rows, resamples - start), array.size))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(array.mean()), float(low), float(high))


def _check_pairs(predictions: Sequence[str], references: Sequence[str]) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"there must be one reference per text, got {len(references)} for {len(predictions)}")
