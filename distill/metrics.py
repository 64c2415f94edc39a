"""Scores of texts against references: ROUGE, BLEU, chrF, exact match. All lie in [0, 1].

BLEU and chrF of a corpus are not means of sentence scores: n-gram counts are summed over the corpus first. So both
come in three steps, counts of each pair, score of (sums of) counts, and the score of each pair alone; the counts are
what a bootstrap resamples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.helpers import extract_all_char_ngrams

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
_BLEU_ORDER = 4
_CHRF_ORDER = 6
_CHRF_BETA = 2.0


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
    from rouge_score import rouge_scorer  # with it come nltk and scipy: 70 MB that training alone need not hold

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


def bleu_counts(predictions: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """What BLEU sums over a corpus, with sacrebleu's tokenizer 13a and one reference per text.

    Returns:
      float64 [E, 10]: words, words of the reference, matching 1- to 4-grams, 1- to 4-grams.

    Raises:
      ValueError: If the two sequences differ in length.
    """
    _check_pairs(predictions, references)
    scorer = BLEU(effective_order=True)  # silences the advice to use it; the counts are the same
    scores = [scorer.sentence_score(text, [reference]) for text, reference in zip(predictions, references, strict=True)]
    rows = [[score.sys_len, score.ref_len, *score.counts, *score.totals] for score in scores]
    return np.array(rows, np.float64).reshape(-1, 2 + 2 * _BLEU_ORDER)


def bleu_of_counts(counts: NDArray[np.float64], *, effective_order: bool = False) -> NDArray[np.float64]:
    """BLEU in [0, 1] of each row of (summed) counts, with sacrebleu's default smoothing.

    Args:
      counts: float64 [R, 10], as `bleu_counts` orders them.
      effective_order: Whether orders longer than the text are left out, as is usual for single sentences.

    Returns:
      float64 [R].

    References:
      Papineni et al., 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation"; Post, 2018, "A Call for
      Clarity in Reporting BLEU Scores", arXiv:1804.08771; computed by the package sacrebleu.
    """
    scores = [
        BLEU.compute_bleu(
            row[2 : 2 + _BLEU_ORDER],
            row[2 + _BLEU_ORDER :],
            row[0],
            row[1],
            smooth_method="exp",
            effective_order=effective_order,
        ).score
        for row in counts.astype(np.int64).tolist()
    ]
    return np.array(scores, np.float64) / 100


def sentence_bleu(predictions: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """BLEU of each pair alone, in [0, 1]; [len(predictions)]. Errors and sources as in `bleu_counts` and above."""
    return bleu_of_counts(bleu_counts(predictions, references), effective_order=True)


def chrf_counts(predictions: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """What chrF sums over a corpus: character n-grams of 1 to 6, blanks left out.

    Returns:
      float64 [E, 18]: for each order the n-grams of the text, of the reference, and those in both.

    Raises:
      ValueError: If the two sequences differ in length.
    """
    _check_pairs(predictions, references)
    rows = [_chrf_row(text, reference) for text, reference in zip(predictions, references, strict=True)]
    return np.array(rows, np.float64).reshape(-1, 3 * _CHRF_ORDER)


def _chrf_row(text: str, reference: str) -> list[int]:
    orders = zip(
        extract_all_char_ngrams(text, _CHRF_ORDER), extract_all_char_ngrams(reference, _CHRF_ORDER), strict=True
    )
    return [count for grams, expected in orders for count in _chrf_order(grams, expected)]


def _chrf_order(grams: Counter[str], expected: Counter[str]) -> tuple[int, int, int]:
    """An order longer than the reference counts no n-gram of the text, as in sacrebleu."""
    return (grams.total() if expected else 0), expected.total(), (grams & expected).total()


def chrf_of_counts(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """chrF2 in [0, 1] of each row of (summed) counts: precision and recall averaged over orders, recall weighs double.

    Args:
      counts: float64 [R, 18], as `chrf_counts` orders them.

    Returns:
      float64 [R].

    References:
      Popović, 2015, "chrF: character n-gram F-score for automatic MT evaluation"; orders that are longer than either
      text are left out as in sacrebleu 2, whose figures these are.
    """
    by_order = counts.reshape(-1, _CHRF_ORDER, 3)
    found, wanted, matching = by_order[..., 0], by_order[..., 1], by_order[..., 2]  # [R, 6]
    effective = (found > 0) & (wanted > 0)
    num_orders = np.maximum(effective.sum(axis=1), 1)
    precision = (effective * matching / np.maximum(found, 1)).sum(axis=1) / num_orders
    recall = (effective * matching / np.maximum(wanted, 1)).sum(axis=1) / num_orders
    weight = _CHRF_BETA**2
    below = weight * precision + recall
    return np.where(below > 0, (1 + weight) * precision * recall / np.where(below > 0, below, 1), 0.0)


def sentence_chrf(predictions: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """chrF2 of each pair alone, in [0, 1]; [len(predictions)]. Errors and sources as in `chrf_counts` and above."""
    return chrf_of_counts(chrf_counts(predictions, references))


def _check_pairs(predictions: Sequence[str], references: Sequence[str]) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"there must be one reference per text, got {len(references)} for {len(predictions)}")
