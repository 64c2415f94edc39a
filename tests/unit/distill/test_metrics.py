"""ROUGE and exact match by hand, BLEU and chrF against sacrebleu."""

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from attar.distill.metrics import (
    bleu_counts,
    bleu_of_counts,
    chrf_counts,
    chrf_of_counts,
    exact_match,
    rouge,
    sentence_bleu,
    sentence_chrf,
)

PAIRS = [
    ("the cat sat on the mat.", "the cat is on the mat."),
    ("a", "a"),
    ("", "nothing was said"),
    ("something was said", ""),
    ("Ein Hund, zwei Hunde - drei!", "Ein Hund; zwei Hunde; drei?"),
    ("naïve 1,234.5 café", "naive 1,234.5 cafe"),
    ("the the the the", "the cat"),
    ("identical texts of more than four words", "identical texts of more than four words"),
    ("xyz", "abc"),
]
TEXTS, REFERENCES = ([pair[side] for pair in PAIRS] for side in (0, 1))


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


def test_bleu_is_sacrebleu_s() -> None:
    scorer = BLEU(effective_order=True)
    expected = [scorer.sentence_score(text, [reference]).score / 100 for text, reference in PAIRS]
    np.testing.assert_allclose(sentence_bleu(TEXTS, REFERENCES), expected)
    corpus = BLEU().corpus_score(TEXTS, [REFERENCES]).score / 100
    found = bleu_of_counts(bleu_counts(TEXTS, REFERENCES).sum(axis=0, keepdims=True))
    assert found[0] == pytest.approx(corpus)
    assert 0.1 < corpus < 0.9


def test_bleu_by_hand() -> None:
    # Precisions 4/5, 2/4, 1/3 and, smoothed, 1/(2·2); the reference is one word longer.
    row = bleu_counts(["a b c x e"], ["a b c d e f"])
    np.testing.assert_array_equal(row, [[5, 6, 4, 2, 1, 0, 5, 4, 3, 2]])
    expected = np.exp(1 - 6 / 5) * (4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** 0.25
    assert bleu_of_counts(row)[0] == pytest.approx(expected)


def test_chrf_is_sacrebleu_s() -> None:
    expected = [CHRF().sentence_score(text, [reference]).score / 100 for text, reference in PAIRS]
    np.testing.assert_allclose(sentence_chrf(TEXTS, REFERENCES), expected)
    corpus = CHRF().corpus_score(TEXTS, [REFERENCES]).score / 100
    found = chrf_of_counts(chrf_counts(TEXTS, REFERENCES).sum(axis=0, keepdims=True))
    assert found[0] == pytest.approx(corpus)
    assert 0.1 < corpus < 0.9


def test_chrf_by_hand() -> None:
    # Characters: 2 of 3 found, of 2 wanted; pairs: 1 of 2, of 1; longer ones do not fit into the reference.
    precision, recall = (2 / 3 + 1 / 2) / 2, 1.0
    assert sentence_chrf(["a b c"], ["ab"])[0] == pytest.approx(5 * precision * recall / (4 * precision + recall))


def test_no_texts_have_no_scores() -> None:
    assert sentence_bleu([], []).shape == sentence_chrf([], []).shape == (0,)
    with pytest.raises(ValueError, match="one reference per text, got 0 for 1"):
        sentence_bleu(["a"], [])
    with pytest.raises(ValueError, match="one reference per text, got 0 for 1"):
        sentence_chrf(["a"], [])
