"""What an evaluation found example by example, its file in the run folder, and the figures of a set of examples.

```
evaluations/step-000200.jsonl     one JSON object a line
  {"example": "12", "completion_tokens": 9, "scores": {"nll": 1.3, "rougeL": 0.4, ...},
   "reference": "...", "completion": "...", "sample": "..."}
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

from attar.distill.bootstrap import Figure, mean_figure, ratio
from attar.distill.data import Example
from attar.distill.diversity import distinct_parts, self_bleu
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
      completion: The greedy answer.
      sample: An answer drawn at temperature 1; None where none was drawn.
    """

    example: str
    completion_tokens: int
    scores: dict[str, float]
    reference: str
    completion: str
    sample: str | None = None


def collect_results(
    examples: Sequence[Example],
    completions: Sequence[str],
    scores: Mapping[str, NDArray[np.float64]],
    samples: Sequence[str],
) -> tuple[ExampleResult, ...]:
    """One result per example, the scores of its text added.

    Args:
      examples: E examples.
      completions: E greedy answers.
      scores: By name one array [E], NaN where an example was not measured.
      samples: Drawn answers of the first examples, at most E.
    """
    references = [example.reference for example in examples]
    columns = {**scores, **text_scores(completions, references)}
    return tuple(
        ExampleResult(
            key,
            len(example.completion),
            {name: float(values[i]) for name, values in columns.items() if not np.isnan(values[i])},
            example.reference,
            completions[i],
            samples[i] if i < len(samples) else None,
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
        found[PERPLEXITY] = Figure(np.stack([columns["nll"] * tokens, tokens], axis=1), _exp_ratio)
    found |= {name: mean_figure(values) for name, values in columns.items()}
    texts, references = [result.completion for result in results], [result.reference for result in results]
    found["bleu"] = Figure(bleu_counts(texts, references), bleu_of_counts)
    found["chrf"] = Figure(chrf_counts(texts, references), chrf_of_counts)
    found |= _diversity([result.sample or "" for result in results])
    return {name: figure for name, figure in found.items() if figure.measured.any()}


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
        return ExampleResult(**json.loads(line))
    except (json.JSONDecodeError, TypeError):
        raise RunError(f"{path}:{number}: is not the result of an example; evaluate again") from None
