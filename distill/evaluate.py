"""Evaluation of a model in JAX, or of an exported file through a session, on held-out prompts.

What is measured, per example and then averaged with a bootstrap interval over examples:
    nll                        nats per token of the given completions (perplexity is its exponential over all tokens)
    kl_*_data                  divergence to the teacher, nats per token, on the given completions
    kl_*_samples               the same on the student's own samples at temperature 1
    agreement_*                share of positions where the teacher's likeliest token is the student's
    rouge*, exact              greedy completions against the given ones, in [0, 1]
    sentence_bleu, *_chrf      likewise; `bleu` and `chrf` are those of the corpus, which sum n-gram counts first
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

import jax
import numpy as np
from numpy.typing import NDArray

from attar.distill.batches import Batch, Buckets, choose_buckets
from attar.distill.bootstrap import Interval, figure_interval
from attar.distill.data import DataSet, Example
from attar.distill.example_results import PERPLEXITY, ExampleResult, collect_results, figures
from attar.distill.rollout import sample_batch
from attar.distill.token_scores import Rows, example_batches, score_examples
from attar.engine.config import ModelConfig
from attar.engine.sampling import GREEDY, SamplingParams
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
    scores, samples = _score(student, teacher, tokenizer, data, settings, buckets)
    completions = generate_texts(student, tokenizer, data, settings, buckets)
    return summarize(data.examples, completions, scores, samples, settings.num_samples)


def summarize(
    examples: Sequence[Example],
    completions: Sequence[str],
    scores: Mapping[str, NDArray[np.float64]],
    samples: Sequence[str],
    num_samples: int,
) -> Evaluation:
    """The evaluation that scores and texts amount to.

    Args:
      examples: E examples.
      completions: E greedy answers.
      scores: By name one array for the first examples, at most E; NaN where one was not measured.
      samples: Drawn answers of the first examples.
      num_samples: Completions kept to be shown.
    """
    padded = {name: np.concatenate([v, np.full(len(examples) - len(v), np.nan)]) for name, v in scores.items()}
    results = collect_results(examples, completions, padded, samples)
    intervals = {name: figure_interval(figure) for name, figure in figures(results).items()}
    perplexity = intervals.pop(PERPLEXITY, None)
    shown = zip(examples[:num_samples], completions[:num_samples], strict=True)
    return Evaluation(
        intervals,
        1.0 if perplexity is None else perplexity.mean,
        tuple(Sample(example.prompt_text, example.reference, text) for example, text in shown),
        results,
    )


def _score(
    student: Network,
    teacher: Network | None,
    tokenizer: Tokenizer,
    data: DataSet,
    settings: EvalSettings,
    buckets: Buckets | None,
) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    """Scores per example by name, those on samples included, and the samples."""
    examples = data.examples[: settings.scored_examples]
    # A batch is filled with copies of its rows, so few examples are not spread over many large ones.
    batch_size = min(settings.batch_size, len(examples))
    shapes = buckets or choose_buckets(replace(data, examples=examples), 1 if len(examples) == batch_size else 2, 1)
    given = list(example_batches(examples, batch_size, shapes))
    on_data = score_examples(student, teacher, given, len(examples)).means()
    scores = {name if name == "nll" else f"{name}_data": values for name, values in on_data.items()}
    if teacher is None:
        return scores, []
    drawn = [
        (_complete(student, tokenizer, batch, settings, SamplingParams(), i), rows)
        for i, (batch, rows) in enumerate(given)
    ]
    on_samples = score_examples(student, teacher, drawn, len(examples))
    scores |= {f"{name}_samples": values for name, values in on_samples.means().items() if name != "nll"}
    scores["kl_student_teacher_sequence"] = on_samples.sums["kl_student_teacher"]
    return scores, _decode(tokenizer, drawn, len(examples))


def generate_texts(
    model: Network,
    tokenizer: Tokenizer,
    data: DataSet,
    settings: EvalSettings,
    buckets: Buckets | None = None,
) -> list[str]:
    """Greedy completions of a JAX model, one per example; arguments as in `evaluate`."""
    shapes = buckets or choose_buckets(data, 2, 1)
    answers = [
        (_complete(model, tokenizer, batch, settings, GREEDY, 0), rows)
        for batch, rows in example_batches(data.examples, settings.batch_size, shapes)
    ]
    return _decode(tokenizer, answers, len(data.examples))


def _decode(tokenizer: Tokenizer, answers: Sequence[tuple[Batch, Rows]], num_examples: int) -> list[str]:
    texts = [""] * num_examples
    for batch, rows in answers:
        tokens, lengths = np.asarray(batch.completions), np.asarray(batch.completion_lengths)
        for i, row in enumerate(rows):
            texts[row] = tokenizer.decode(tokens[i, : lengths[i]].tolist()).strip()
    return texts


def _complete(
    model: Network, tokenizer: Tokenizer, batch: Batch, settings: EvalSettings, sampling: SamplingParams, index: int
) -> Batch:
    return sample_batch(
        model.params,
        model.config,
        batch,
        max_new_tokens=settings.max_new_tokens,
        sampling=sampling,
        eos_token_ids=tokenizer.eos_token_ids,
        key=jax.random.fold_in(jax.random.key(settings.seed), index),
    )
