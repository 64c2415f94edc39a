"""How much the texts of a set differ from one another: distinct n-grams and self-BLEU.

Both are figures of a set, and a set drawn from them with replacement holds copies, which are never diverse. So each is
taken apart into what every text adds while the others stay, and a bootstrap resamples those parts.
Words are those of sacrebleu's tokenizer 13a.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.helpers import extract_all_word_ngrams, extract_word_ngrams
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from attar.distill.metrics import bleu_of_counts

_ORDER = 4
_Gram = tuple[str, ...]


def distinct(texts: Sequence[str], order: int) -> float:
    """Different n-grams over all n-grams of a set of texts, in (0, 1]; 1 where none occurs twice.

    Raises:
      ValueError: If the order is below 1, or no text has an n-gram.

    References:
      Li et al., 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models", arXiv:1510.03055,
      there divided by the number of words.
    """
    parts = distinct_parts(texts, order)
    measured = parts[~np.isnan(parts).any(axis=1)]
    if len(measured) == 0:
        raise ValueError(f"distinct-{order} needs a text of at least {order} words, got none")
    different, count = measured.sum(axis=0)
    return float(different / count)


def distinct_parts(texts: Sequence[str], order: int) -> NDArray[np.float64]:
    """What each text adds to the different n-grams of the set, an n-gram that occurs c times being worth 1/c each.

    Returns:
      float64 [E, 2]: different n-grams and all n-grams; NaN for a text without any.

    Raises:
      ValueError: If the order is below 1.
    """
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    tokenizer = Tokenizer13a()  # type: ignore[no-untyped-call]  # sacrebleu leaves it without types
    grams: list[Counter[str]] = [extract_word_ngrams(tokenizer(text).split(), order) for text in texts]
    everywhere: Counter[str] = Counter()
    for own in grams:
        everywhere.update(own)
    rows = [(sum(count / everywhere[gram] for gram, count in own.items()), own.total()) for own in grams]
    parts = np.array(rows, np.float64).reshape(-1, 2)
    parts[parts[:, 1] == 0] = np.nan
    return parts


def self_bleu(texts: Sequence[str]) -> NDArray[np.float64]:
    """BLEU-4 of each text against all others, in [0, 1]; their mean is the set's, high where texts are alike.

    Smoothed and cut to the text's length as `metrics.sentence_bleu`. Time grows with the number of words, since the
    largest and second largest count of an n-gram tell the largest among the others.

    Returns:
      float64 [E]; NaN for a text without words, and for all where fewer than two have words.

    References:
      Zhu et al., 2018, "Texygen: A Benchmarking Platform for Text Generation Models", arXiv:1802.01886, section 3.2.
    """
    tokenizer = Tokenizer13a()  # type: ignore[no-untyped-call]  # sacrebleu leaves it without types
    extracted = [extract_all_word_ngrams(tokenizer(text), 1, _ORDER) for text in texts]
    chosen = [index for index, (_, length) in enumerate(extracted) if length]
    scores = np.full(len(texts), np.nan)
    if len(chosen) < 2:
        return scores
    largest = _largest_counts([extracted[index][0] for index in chosen])
    lengths = Counter(extracted[index][1] for index in chosen)
    rows = [
        _row(place, *extracted[index], largest, lengths - Counter([extracted[index][1]]))
        for place, index in enumerate(chosen)
    ]
    scores[chosen] = bleu_of_counts(np.array(rows, np.float64), effective_order=True)
    return scores


@dataclass(slots=True)
class _Largest:
    """The largest count of an n-gram in one text, the place of that text, and the largest among the others."""

    count: int = 0
    place: int = -1
    runner_up: int = 0


def _largest_counts(grams: Sequence[Counter[_Gram]]) -> dict[_Gram, _Largest]:
    found: dict[_Gram, _Largest] = {}
    for place, own in enumerate(grams):
        for gram, count in own.items():
            best = found.setdefault(gram, _Largest())
            if count > best.count:
                best.count, best.place, best.runner_up = count, place, best.count
            else:
                best.runner_up = max(best.runner_up, count)
    return found


def _row(
    place: int, own: Counter[_Gram], length: int, largest: dict[_Gram, _Largest], other_lengths: Counter[int]
) -> list[int]:
    """Counts of one text against all others, ordered as `metrics.bleu_counts` orders them."""
    matching, total = [0] * _ORDER, [0] * _ORDER
    for gram, count in own.items():
        best = largest[gram]
        total[len(gram) - 1] += count
        matching[len(gram) - 1] += min(count, best.runner_up if best.place == place else best.count)
    closest = min(other_lengths, key=lambda other: (abs(other - length), other))
    return [length, closest, *matching, *total]
