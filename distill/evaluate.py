"""Evaluation of a model in JAX, or of an exported file through a session, on held-out prompts.

What is measured, per example and then averaged with a bootstrap interval over examples:
    nll                        nats per token of the given completions (perplexity is its exponential over all tokens)
    kl_*_data                  divergence to the teacher, nats per token, on the given completions
    kl_*_samples               the same on the student's own samples at temperature 1
    agreement_*                share of positions where the teacher's likeliest token is the student's
    bits_per_byte,             of plain text, which is scored in windows and not answered: they compare models of
    word_perplexity            different tokenizers, as perplexity does not
    rouge*, exact              greedy completions against the given ones, in [0, 1]
    sentence_bleu, *_chrf      likewise; `bleu` and `chrf` are those of the corpus, which sum n-gram counts first
    answer, chain              final answers that are right, and chains whose every step is, where the given completion
                               ends in a final answer (`answers`); `answer_calculator` with a calculator at hand
    distinct*, self_bleu       diversity of the samples: different n-grams over all, and BLEU against one another
Samples are drawn where there is a teacher. Texts are scored by all measures: which one means something depends on
the data.
`kl_student_teacher` is KL(student ‖ teacher), the full-vocabulary divergence at every position: summed over a sample
and averaged over samples it is an unbiased estimate of the sequence-level KL with less variance than log-ratios.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from attar.distill.batches import Buckets, choose_buckets
from attar.distill.bootstrap import Interval, figure_interval
from attar.distill.data import DataSet, Example
from attar.distill.example_results import PERPLEXITY, ExampleResult, collect_results, figures, has_final_answer
from attar.distill.jax_answers import Writer
from attar.distill.token_scores import example_batches, score_examples
from attar.engine.config import ModelConfig
from attar.engine.sampling import SamplingParams
from attar.engine.sharding import mesh_shape
from attar.engine.tokenizer import Tokenizer
from attar.engine.transformer import Params


class Network(NamedTuple):
    """Weights with their shape."""

    params: Params
    config: ModelConfig


@dataclass(frozen=True)
class Sample:
    """What a model made of one held-out prompt, beside the reference."""

    prompt: str
    reference: str
    completion: str


@dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation.

    Attributes:
      scores: Mean and 95 % interval over examples, by name (see the module's docstring).
      perplexity: Of the given completions, over all their tokens.
      samples: Greedy completions of the first prompts.
      results: What was found example by example, for comparisons in pairs.
    """

    scores: dict[str, Interval]
    perplexity: float
    samples: tuple[Sample, ...] = field(default=())
    results: tuple[ExampleResult, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class EvalSettings:
    """How to evaluate.

    Attributes:
      batch_size: Rows worked on at a time.
      max_new_tokens: Longest completion.
      seed: Of the samples; the same seed compares models on the same random numbers.
      num_samples: Completions kept to be shown.
      scored_examples: Examples whose likelihood and divergences are taken, the first ones; None takes all. Reading
        them costs as much as answering them.
    """

    batch_size: int = 16
    max_new_tokens: int = 128
    seed: int = 0
    num_samples: int = 8
    scored_examples: int | None = None


def evaluate(
    student: Network,
    teacher: Network | None,
    tokenizer: Tokenizer,
    data: DataSet,
    settings: EvalSettings,
    buckets: Buckets | None = None,
) -> Evaluation:
    """Measures a JAX model on held-out examples; without a teacher, what is compared to it or sampled is left out.

    Args:
      student: The model to measure.
      teacher: What it is compared to, over the same vocabulary.
      data: Held-out examples.
      settings: How to evaluate.
      buckets: Shapes to pad to, such as those already compiled; None chooses two for the data.
    """
    examples, writer = data.examples, _writer(student, tokenizer, settings)
    scores, samples = _score(student, teacher, writer, data, settings, buckets)
    answers = writer.answer(examples, asked_examples(examples), buckets or choose_buckets(data, 2, 1))
    final = [i for i in answers if has_final_answer(examples[i].reference)]
    assisted = writer.answer_with_calculator([examples[i] for i in final], [answers[i] for i in final])
    assisted_by_index = stripped(dict(zip(final, assisted, strict=True)))
    return summarize(examples, stripped(answers), scores, samples, settings.num_samples, assisted_by_index)


def summarize(
    examples: Sequence[Example],
    completions: Mapping[int, str],
    scores: Mapping[str, NDArray[np.float64]],
    samples: Mapping[int, str],
    num_samples: int,
    assisted: Mapping[int, str],
) -> Evaluation:
    """The evaluation that scores and texts amount to.

    Args:
      examples: E examples.
      completions: Greedy answers by the example's index.
      scores: By name one array for the first examples, at most E; NaN where one was not measured.
      samples: Drawn answers by the example's index.
      num_samples: Completions kept to be shown.
      assisted: Greedy answers with a calculator by the example's index.
    """
    padded = {name: np.concatenate([v, np.full(len(examples) - len(v), np.nan)]) for name, v in scores.items()}
    answers = [completions.get(i, "") for i in range(len(examples))]
    results = collect_results(examples, answers, padded, samples, assisted)
    intervals = {name: figure_interval(figure) for name, figure in figures(results).items()}
    perplexity = intervals.pop(PERPLEXITY, None)
    shown = [(examples[i], text) for i, text in sorted(completions.items())[:num_samples]]
    return Evaluation(
        intervals,
        1.0 if perplexity is None else perplexity.mean,
        tuple(Sample(example.prompt_text, example.reference, text) for example, text in shown),
        results,
    )


def _score(
    student: Network,
    teacher: Network | None,
    writer: Writer,
    data: DataSet,
    settings: EvalSettings,
    buckets: Buckets | None,
) -> tuple[dict[str, NDArray[np.float64]], dict[int, str]]:
    """Scores per example by name, those on samples included, and the samples by the example's index."""
    examples = data.examples[: settings.scored_examples]
    # A batch is filled with copies of its rows, so few examples are not spread over many large ones.
    shards = mesh_shape().row_shards
    batch_size = min(settings.batch_size, -(-len(examples) // shards) * shards)
    shapes = buckets or choose_buckets(replace(data, examples=examples), 1 if len(examples) <= batch_size else 2, 1)
    given = list(example_batches(examples, batch_size, shapes))
    on_data = score_examples(student, teacher, given, len(examples)).means()
    scores = {name if name == "nll" else f"{name}_data": values for name, values in on_data.items()}
    asked = asked_examples(examples)
    if teacher is None or not asked:
        return scores, {}
    batches = example_batches(examples, batch_size, shapes, asked)
    drawn = [(writer.complete(batch, SamplingParams(), i), rows) for i, (batch, rows) in enumerate(batches)]
    on_samples = score_examples(student, teacher, drawn, len(examples))
    scores |= {f"{name}_samples": values for name, values in on_samples.means().items() if name != "nll"}
    unmeasured = np.where(on_samples.lengths > 0, 0.0, np.nan)  # a window of text has no sample
    scores["kl_student_teacher_sequence"] = on_samples.sums["kl_student_teacher"] + unmeasured
    return scores, stripped(writer.decode(drawn))


def generate_texts(
    model: Network,
    tokenizer: Tokenizer,
    data: DataSet,
    settings: EvalSettings,
    buckets: Buckets | None = None,
) -> list[str]:
    """Greedy completions of a JAX model, one per prompt; arguments as in `evaluate`."""
    writer = _writer(model, tokenizer, settings)
    answers = writer.answer(data.examples, asked_examples(data.examples), buckets or choose_buckets(data, 2, 1))
    return [text for _, text in sorted(stripped(answers).items())]


def asked_examples(examples: Sequence[Example]) -> list[int]:
    """Indices of the examples that are prompts, and not windows of text."""
    return [i for i, example in enumerate(examples) if example.text_size is None]


def stripped(texts: Mapping[int, str]) -> dict[int, str]:
    """Texts without the blanks at their ends."""
    return {i: text.strip() for i, text in texts.items()}


def _writer(model: Network, tokenizer: Tokenizer, settings: EvalSettings) -> Writer:
    return Writer(*model, tokenizer, settings.batch_size, settings.max_new_tokens, settings.seed)
