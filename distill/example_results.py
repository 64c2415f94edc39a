"""What an evaluation found example by example, its file in the run folder, and the figures of a set of examples.

```
evaluations/step-000200.jsonl     one JSON object a line
  {"example": "12", "completion_tokens": 9, "scores": {"nll": 1.3, "rougeL": 0.4, ...},
   "reference": "...", "completion": "...", "sample": "...", "assisted": null, "text_size": null}
```
Figures are made from these lines alone, so that two runs can be compared on the examples that they share.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attar.distill.answers import answers_correct, chains_correct, final_answer
from attar.distill.bootstrap import Figure, mean_figure, ratio
from attar.distill.diversity import distinct_parts, self_bleu
from attar.distill.examples import Example, TextSize
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
from attar.distill.run_folder import RunError, write_text

FOLDER = "evaluations"
PERPLEXITY = "perplexity"
_DISTINCT_ORDERS = (1, 2, 3)


@dataclass(frozen=True)
class ExampleResult:
    """One held-out example as a model answered and scored it.

    Attributes:
      example: Line of the data file, from 1; of a line with several examples the later ones are "12.1", "12.2", ...
      completion_tokens: Of the given completion, the end of sequence counted.
      scores: By name; those that were not measured on this example are absent.
      reference: The given completion.
      completion: The greedy answer; "" where a window of text was scored and none asked for.
      sample: An answer drawn at temperature 1; None where none was drawn.
      assisted: The greedy answer with a calculator at hand, where the reference ends in a final answer; else None.
      text_size: Bytes and words of a window of text; None where the example is a prompt.
    """

    example: str
    completion_tokens: int
    scores: dict[str, float]
    reference: str
    completion: str
    sample: str | None = None
    assisted: str | None = None
    text_size: TextSize | None = None


def collect_results(
    examples: Sequence[Example],
    completions: Sequence[str],
    scores: Mapping[str, NDArray[np.float64]],
    samples: Mapping[int, str],
    assisted: Mapping[int, str],
) -> tuple[ExampleResult, ...]:
    """One result per example, the scores of its text added.

    Args:
      examples: E examples.
      completions: E greedy answers; those of windows of text are not read.
      scores: By name one array [E], NaN where an example was not measured.
      samples: Drawn answers by the example's index.
      assisted: Answers with a calculator by the example's index.
    """
    columns = {**scores, **_answer_scores(examples, completions, assisted)}
    return tuple(
        ExampleResult(
            key,
            len(example.completion),
            {name: float(values[i]) for name, values in columns.items() if not np.isnan(values[i])},
            example.reference,
            "" if example.text_size else completions[i],
            samples.get(i),
            assisted.get(i),
            example.text_size,
        )
        for i, (key, example) in enumerate(zip(example_keys(examples), examples, strict=True))
    )


def text_scores(texts: Sequence[str], references: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """ROUGE, exact match, sentence BLEU and sentence chrF of each text against its reference, in [0, 1]."""
    return {
        **rouge(texts, references),
        "exact": exact_match(texts, references),
        "sentence_bleu": sentence_bleu(texts, references),
        "sentence_chrf": sentence_chrf(texts, references),
    }


def _answer_scores(
    examples: Sequence[Example], completions: Sequence[str], assisted: Mapping[int, str]
) -> dict[str, NDArray[np.float64]]:
    """`text_scores` of the answers, and of those to a reference that ends in a final answer whether theirs is right."""
    asked = [i for i, example in enumerate(examples) if example.text_size is None]
    references = [example.reference for example in examples]
    scores = text_scores([completions[i] for i in asked], [references[i] for i in asked]) if asked else {}
    found = {name: _spread(values, asked, len(examples)) for name, values in scores.items()}
    final = [i for i in asked if has_final_answer(references[i])]
    if not final:
        return found
    texts, right = [completions[i] for i in final], [references[i] for i in final]
    found |= {
        "answer": _spread(answers_correct(texts, right), final, len(examples)),
        "chain": _spread(chains_correct(texts), final, len(examples)),
    }
    with_calculator = [i for i in final if i in assisted]
    if with_calculator:
        texts, right = [assisted[i] for i in with_calculator], [references[i] for i in with_calculator]
        found["answer_calculator"] = _spread(answers_correct(texts, right), with_calculator, len(examples))
    return found


def has_final_answer(reference: str) -> bool:
    """Whether a reference is a chain with a final answer, as GSM8K's are."""
    return final_answer(reference) is not None


def _spread(values: NDArray[np.float64], members: Sequence[int], size: int) -> NDArray[np.float64]:
    """Values at the members' places of an array of NaN."""
    spread = np.full(size, np.nan)
    spread[list(members)] = values
    return spread


def example_keys(examples: Sequence[Example]) -> list[str]:
    """Names of examples that do not depend on how many are used: the line, and the turn where a line has several."""
    seen: Counter[int] = Counter()
    keys = []
    for example in examples:
        turn = seen[example.line]
        keys.append(f"{example.line}.{turn}" if turn else str(example.line))
        seen[example.line] += 1
    return keys


def figures(results: Sequence[ExampleResult]) -> dict[str, Figure]:
    """Every figure that the results give: means by score, `perplexity`, corpus `bleu` and `chrf`, and the diversity of
    the samples. A score that no example has is left out.
    """
    names = dict.fromkeys(name for result in results for name in result.scores)
    columns = {name: np.array([result.scores.get(name, np.nan) for result in results]) for name in names}
    found = {}
    if "nll" in columns:
        tokens = np.array([float(result.completion_tokens) for result in results])
        nats = columns["nll"] * tokens
        found[PERPLEXITY] = Figure(np.stack([nats, tokens], axis=1), _exp_ratio)
        found |= _text_figures(results, nats)
    found |= {name: mean_figure(values) for name, values in columns.items()}
    texts, references = [result.completion for result in results], [result.reference for result in results]
    is_text = np.array([result.text_size is not None for result in results])
    for name, counts, score in (("bleu", bleu_counts, bleu_of_counts), ("chrf", chrf_counts, chrf_of_counts)):
        found[name] = Figure(np.where(is_text[:, None], np.nan, counts(texts, references)), score)
    found |= _diversity([result.sample or "" for result in results])
    return {name: figure for name, figure in found.items() if figure.measured.any()}


def _text_figures(results: Sequence[ExampleResult], nats: NDArray[np.float64]) -> dict[str, Figure]:
    """What the windows of text cost by their bytes and words, which no tokenizer decides."""
    sizes = np.array([(np.nan, np.nan) if r.text_size is None else tuple(r.text_size) for r in results])  # [E, 2]
    bits, by_word = np.stack([nats / np.log(2), sizes[:, 0]], axis=1), np.stack([nats, sizes[:, 1]], axis=1)
    return {"bits_per_byte": Figure(bits, ratio), "word_perplexity": Figure(by_word, _exp_ratio)}


def _diversity(samples: Sequence[str]) -> dict[str, Figure]:
    """An example without a sample counts as one whose sample has no words: it is not measured."""
    found = {f"distinct{order}_samples": Figure(distinct_parts(samples, order), ratio) for order in _DISTINCT_ORDERS}
    return {**found, "self_bleu_samples": mean_figure(self_bleu(samples))}


def _exp_ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(ratio(sums))


def results_path(run_dir: Path, step: int) -> Path:
    """Where a run keeps the results of a step."""
    return run_dir / FOLDER / f"step-{step:06d}.jsonl"


def write_results(path: Path, results: Sequence[ExampleResult]) -> None:
    """Writes the results, the file being the old or the new one at any moment.

    Raises:
      RunError: If it cannot be written.
    """
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"{path.parent}: cannot be made: {error.strerror}; the last checkpoint is intact") from None
    write_text(path, "".join(json.dumps(asdict(result)) + "\n" for result in results))


def read_results(path: Path) -> tuple[ExampleResult, ...]:
    """Reads what `write_results` wrote.

    Raises:
      RunError: If the file cannot be read or a line is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    return tuple(_read_line(path, number, line) for number, line in enumerate(lines, start=1) if line)


def _read_line(path: Path, number: int, line: str) -> ExampleResult:
    try:
        raw = json.loads(line)
        size = raw.get("text_size")
        return ExampleResult(**{**raw, "text_size": None if size is None else TextSize(*size)})
    except (json.JSONDecodeError, TypeError):
        raise RunError(f"{path}:{number}: is not the result of an example; evaluate again") from None
