"""Results per example: keys, figures of a set against their definitions, and the file."""

from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from attar.distill.bootstrap import figure_interval
from attar.distill.diversity import distinct, self_bleu
from attar.distill.example_results import (
    ExampleResult,
    collect_results,
    example_keys,
    figures,
    read_results,
    results_path,
    write_results,
)
from attar.distill.examples import Example, TextSize
from attar.distill.run_folder import RunError

REFERENCES = ["the cat sat on the mat", "a dog barks at night", "yes"]
COMPLETIONS = ["the cat sat on a mat", "a dog sleeps at night", "no"]
SAMPLES = ["the cat sat there and sat", "the cat sat here"]


def example(line: int, reference: str, tokens: int) -> Example:
    return Example(line, np.array([1], np.int32), np.arange(tokens, dtype=np.int32), "prompt", reference)


EXAMPLES = [example(line, text, tokens) for line, text, tokens in zip((3, 4, 7), REFERENCES, (4, 1, 0), strict=True)]


@pytest.fixture
def results() -> tuple[ExampleResult, ...]:
    return collect_results(EXAMPLES, COMPLETIONS, {"nll": np.array([1.0, 3.0, np.nan])}, dict(enumerate(SAMPLES)), {})


def test_keys_tell_turns_of_a_line_apart() -> None:
    assert example_keys([example(line, "", 1) for line in (1, 4, 4, 4, 9)]) == ["1", "4", "4.1", "4.2", "9"]


def test_each_example_holds_what_was_measured_on_it(results: tuple[ExampleResult, ...]) -> None:
    first, _, last = results
    assert (first.example, first.completion_tokens, first.sample) == ("3", 4, SAMPLES[0])
    assert first.scores["nll"] == 1.0
    assert first.scores["rouge1"] == pytest.approx(5 / 6)
    assert ("nll" in last.scores, last.sample) == (False, None)


def test_text_counts_by_bytes_and_words_and_has_no_answer(tmp_path: Path) -> None:
    window = Example(1, np.array([1], np.int32), np.arange(6, dtype=np.int32), "", "two words", TextSize(9, 2))
    nll = np.array([0.5, 1.0, 3.0, np.nan])
    results = collect_results([window, *EXAMPLES], ["no answer", *COMPLETIONS], {"nll": nll}, {}, {})
    assert (results[0].completion, set(results[0].scores)) == ("", {"nll"})
    found = {name: figure_interval(figure).mean for name, figure in figures(results).items()}
    assert found["bits_per_byte"] == pytest.approx(6 * 0.5 / np.log(2) / 9)
    assert found["word_perplexity"] == pytest.approx(np.exp(6 * 0.5 / 2))
    assert found["bleu"] == pytest.approx(BLEU().corpus_score(COMPLETIONS, [REFERENCES]).score / 100)
    write_results(results_path(tmp_path, 1), results)
    assert read_results(results_path(tmp_path, 1)) == results


def test_answers_are_scored_where_the_reference_has_a_final_one() -> None:
    chain = example(9, "2+2 = <<2+2=4>>4\n#### 4", 3)
    texts = [*COMPLETIONS, "2+2 = <<2+2=5>>5\n#### 5"]
    results = collect_results([*EXAMPLES, chain], texts, {}, {}, {3: "2+2 = <<2+2=4>>4\n#### 4"})
    scores = results[3].scores
    assert (scores["answer"], scores["chain"], scores["answer_calculator"]) == (0.0, 0.0, 1.0)
    assert "answer" not in results[0].scores
    assert (results[0].assisted, results[3].assisted) == (None, "2+2 = <<2+2=4>>4\n#### 4")
    assert figure_interval(figures(results)["answer_calculator"]).mean == 1.0


def test_figures_equal_their_definitions(results: tuple[ExampleResult, ...]) -> None:
    found = {name: figure_interval(figure).mean for name, figure in figures(results).items()}
    assert found["nll"] == 2.0
    assert found["perplexity"] == pytest.approx(np.exp((4 * 1.0 + 1 * 3.0) / 5))
    assert found["bleu"] == pytest.approx(BLEU().corpus_score(COMPLETIONS, [REFERENCES]).score / 100)
    assert found["chrf"] == pytest.approx(CHRF().corpus_score(COMPLETIONS, [REFERENCES]).score / 100)
    assert found["distinct2_samples"] == pytest.approx(distinct(SAMPLES, 2))
    assert found["self_bleu_samples"] == pytest.approx(self_bleu(SAMPLES).mean())
    assert found["exact"] == 0.0


def test_figures_without_samples_or_scores_are_left_out() -> None:
    found = figures(collect_results(EXAMPLES, COMPLETIONS, {}, {}, {}))
    assert not [name for name in found if "samples" in name or name in ("nll", "perplexity")]


def test_results_read_back(tmp_path: Path, results: tuple[ExampleResult, ...]) -> None:
    path = results_path(tmp_path, 20)
    assert path == tmp_path / "evaluations" / "step-000020.jsonl"
    write_results(path, results)
    assert read_results(path) == results
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_texts_may_hold_any_character(tmp_path: Path) -> None:
    odd = ExampleResult("1", 1, {}, "line\u2028separator\r\n", "\x85\x0b", "\ud800 is half a character")
    write_results(tmp_path / "evaluations" / "a.jsonl", [odd])
    assert read_results(tmp_path / "evaluations" / "a.jsonl") == (odd,)


def test_damaged_results_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(RunError, match=r"a\.jsonl: cannot be read"):
        read_results(path)
    path.write_text('{"example": "1"}\n')
    with pytest.raises(RunError, match=r"a\.jsonl:1: is not the result of an example"):
        read_results(path)
    (tmp_path / "evaluations").write_text("a file")
    with pytest.raises(RunError, match="evaluations"):
        write_results(results_path(tmp_path, 1), [])
