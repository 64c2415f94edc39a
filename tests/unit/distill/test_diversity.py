"""Distinct n-grams by hand, and self-BLEU against sacrebleu with all other texts as references."""

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from attar.distill.diversity import distinct, distinct_parts, self_bleu

TEXTS = [
    "the cat sat on the mat.",
    "the cat sat on the mat today.",
    "a dog, in the garden, barks at the cat on the mat",
    "the the the the the",
    "yes",
    "one two three four five six seven eight nine ten eleven twelve",
]


def test_distinct_by_hand() -> None:
    # a b a / a c: of five words three differ; of three pairs (ab, ba, ac) all do.
    assert distinct(["a b a", "a c"], 1) == pytest.approx(3 / 5)
    assert distinct(["a b a", "a c"], 2) == 1.0
    np.testing.assert_allclose(distinct_parts(["a b a", "a c"], 1), [[1 + 2 / 3, 3], [1 + 1 / 3, 2]])


def test_copies_share_what_they_add() -> None:
    assert distinct(["a b c"] * 4, 3) == pytest.approx(1 / 4)


def test_texts_without_an_ngram_add_nothing() -> None:
    assert distinct(["a b", "", "c"], 2) == 1.0
    assert np.isnan(distinct_parts(["", "a b"], 2)[0]).all()
    with pytest.raises(ValueError, match="distinct-3 needs a text of at least 3 words"):
        distinct(["a b", ""], 3)
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        distinct(["a"], 0)


def test_self_bleu_is_bleu_against_all_others() -> None:
    scorer = BLEU(effective_order=True)
    expected = [scorer.sentence_score(text, TEXTS[:i] + TEXTS[i + 1 :]).score / 100 for i, text in enumerate(TEXTS)]
    np.testing.assert_allclose(self_bleu(TEXTS), expected)
    assert min(expected) < 0.01 < 0.5 < max(expected)


def test_self_bleu_of_copies_is_one_and_of_strangers_zero() -> None:
    np.testing.assert_allclose(self_bleu(["a b c d"] * 3), 1.0)
    np.testing.assert_array_equal(self_bleu(["a b c d", "e f g h"]), 0.0)


def test_self_bleu_needs_two_texts_with_words() -> None:
    assert np.isnan(self_bleu(["a b", "", " "])).all()
    np.testing.assert_array_equal(np.isnan(self_bleu(["a b", "", "a b"])), [False, True, False])
