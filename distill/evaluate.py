"""Evaluation of a model in JAX, or of an exported file through a session, on held-out prompts.

What is measured, per example and then averaged with a bootstrap interval over examples:
    nll            nats per token of the given completions (perplexity is its exponential over all tokens)
    kl_*_data      divergence to the teacher, nats per token, on the given completions
    kl_*_samples   the same on the student's own samples at temperature 1
    rouge*, exact  greedy completions against the given ones
`kl_student_teacher` is KL(student ‖ teacher), the full-vocabulary divergence at every position: summed over a sample
and averaged over samples it is an unbiased estimate of the sequence-level KL with less variance than log-ratios.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from attar.distill.batches import Batch, Buckets, choose_buckets, pad_batch, round_up
from attar.distill.bootstrap import Interval, bootstrap_interval
from attar.distill.data import DataSet, Example
from attar.distill.divergences import forward_kl, reverse_kl
from attar.distill.losses import completion_mask, cross_entropy
from attar.distill.metrics import exact_match, rouge
from attar.distill.projected_loss import projected_sums
from attar.distill.rollout import sample_batch
from attar.distill.step import completion_heads
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
    """

    scores: dict[str, Interval]
    perplexity: float
    samples: tuple[Sample, ...] = field(default=())


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
    """Measures a JAX model on held-out examples; without a teacher the divergences are left out.

    Args:
      student: The model to measure.
      teacher: What it is compared to, over the same vocabulary.
      data: Held-out examples.
      settings: How to evaluate.
      buckets: Shapes to pad to, such as those already compiled; None chooses two for the data.
    """
    examples = data.examples
    on_data, scores = _score(student, teacher, tokenizer, data, settings, buckets)
    texts = generate_texts(student, tokenizer, data, settings, buckets)
    references = [example.reference for example in examples]
    return Evaluation(
        {name: bootstrap_interval(values) for name, values in (scores | text_scores(texts, references)).items()},
        math.exp(on_data.sums["nll"].sum() / max(on_data.lengths.sum(), 1)),
        tuple(
            Sample(example.prompt_text, example.reference, text)
            for example, text in list(zip(examples, texts, strict=True))[: settings.num_samples]
        ),
    )


def _score(
    student: Network,
    teacher: Network | None,
    tokenizer: Tokenizer,
    data: DataSet,
    settings: EvalSettings,
    buckets: Buckets | None,
) -> tuple[_TokenScores, dict[str, NDArray[np.float64]]]:
    """Sums on the given completions, and by name the scores per example, those on samples included."""
    examples = data.examples[: settings.scored_examples]
    # A batch is filled with copies of its rows, so few examples are not spread over many large ones.
    batch_size = min(settings.batch_size, len(examples))
    shapes = buckets or choose_buckets(replace(data, examples=examples), 1 if len(examples) == batch_size else 2, 1)
    given = list(_batches(examples, batch_size, shapes))
    on_data = _score_all(student, teacher, given, len(examples))
    scores = {name if name == "nll" else f"{name}_data": values for name, values in on_data.means().items()}
    if teacher is None:
        return on_data, scores
    drawn = [
        (_complete(student, tokenizer, batch, settings, SamplingParams(), i), rows)
        for i, (batch, rows) in enumerate(given)
    ]
    on_samples = _score_all(student, teacher, drawn, len(examples))
    scores |= {f"{name}_samples": values for name, values in on_samples.means().items() if name != "nll"}
    scores["kl_student_teacher_sequence"] = on_samples.sums["kl_student_teacher"]
    return on_data, scores


def text_scores(texts: Sequence[str], references: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """ROUGE and exact match of each text against its reference, in [0, 1]."""
    return {**rouge(texts, references), "exact": exact_match(texts, references)}


def generate_texts(
    model: Network,
    tokenizer: Tokenizer,
    data: DataSet,
    settings: EvalSettings,
    buckets: Buckets | None = None,
) -> list[str]:
    """Greedy completions of a JAX model, one per example; arguments as in `evaluate`."""
    texts = [""] * len(data.examples)
    for batch, rows in _batches(data.examples, settings.batch_size, buckets or choose_buckets(data, 2, 1)):
        answer = _complete(model, tokenizer, batch, settings, GREEDY, 0)
        tokens, lengths = np.asarray(answer.completions), np.asarray(answer.completion_lengths)
        for i, row in enumerate(rows):
            texts[row] = tokenizer.decode(tokens[i, : lengths[i]].tolist()).strip()
    return texts


@dataclass(frozen=True)
class _TokenScores:
    """Per example: sums over its completion tokens by name, and how many tokens there were."""

    sums: dict[str, NDArray[np.float64]]
    lengths: NDArray[np.int64]

    def means(self) -> dict[str, NDArray[np.float64]]:
        """Per-token means of the examples that have tokens."""
        counted = self.lengths > 0
        return {name: values[counted] / self.lengths[counted] for name, values in self.sums.items() if counted.any()}


_Rows = list[int]


def _score_all(
    student: Network, teacher: Network | None, batches: Sequence[tuple[Batch, _Rows]], num_examples: int
) -> _TokenScores:
    sums: dict[str, NDArray[np.float64]] = {}
    lengths = np.zeros(num_examples, np.int64)
    for batch, rows in batches:
        scored = _score_batch(
            student.params, teacher and teacher.params, batch, student.config, teacher and teacher.config
        )
        lengths[rows] = np.asarray(batch.completion_lengths)[: len(rows)]
        for name, values in scored.items():
            sums.setdefault(name, np.zeros(num_examples))[rows] = np.asarray(values, np.float64)[: len(rows)]
    return _TokenScores(sums, lengths)


@partial(jax.jit, static_argnames=("student", "teacher"))
def _score_batch(
    student_params: Params,
    teacher_params: Params | None,
    batch: Batch,
    student: ModelConfig,
    teacher: ModelConfig | None,
) -> dict[str, Float[Array, " B"]]:
    """Sums over the completion of each row."""
    known = None if teacher is None or teacher_params is None else (teacher_params, teacher)
    heads = completion_heads(student_params, student, batch, known)
    mask = completion_mask(jnp.asarray(batch.completion_lengths), batch.completions.shape[1])
    return projected_sums(_token_scores, *heads, jnp.asarray(batch.completions), mask)


def _token_scores(
    logits: Float[Array, "B N V"], targets: Int[Array, "B N"], teacher_logits: Float[Array, "B N V"] | None
) -> dict[str, Float[Array, "B N"]]:
    values = {"nll": cross_entropy(logits, targets)}
    if teacher_logits is not None:
        values["kl_teacher_student"] = forward_kl(logits, teacher_logits)
        values["kl_student_teacher"] = reverse_kl(logits, teacher_logits)
    return values


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


def _batches(examples: Sequence[Example], batch_size: int, buckets: Buckets) -> Iterator[tuple[Batch, _Rows]]:
    """Batches of one shape per prompt bucket with the examples' indices; short ones are filled with copies of a row."""
    by_bucket: dict[int, list[int]] = {}
    for index, example in enumerate(examples):
        by_bucket.setdefault(round_up(len(example.prompt), buckets.prompt), []).append(index)
    for prompt_tokens, members in sorted(by_bucket.items()):
        for start in range(0, len(members), batch_size):
            rows = members[start : start + batch_size]
            filled = rows + [rows[0]] * (batch_size - len(rows))
            # Padding ids are never read, so any id will do.
            yield pad_batch([examples[i] for i in filled], prompt_tokens, buckets.completion[-1], 0), rows
