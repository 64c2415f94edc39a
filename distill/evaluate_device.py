"""Evaluation of an exported file through its own runtime: the same figures as `evaluate`, taken on the device's side.

The file answers and is scored by its Session; the teacher runs in JAX over the tokens that the file sampled. So a
quantised file is measured as it ships, not as a simulation of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from attar.distill.batches import Batch, choose_bounds, pad_batch, round_up
from attar.distill.calculator_decoding import answer_with_calculator
from attar.distill.data import DataSet, Example
from attar.distill.evaluate import EvalSettings, Evaluation, Network, asked_examples, summarize
from attar.distill.example_results import has_final_answer
from attar.distill.losses import completion_mask
from attar.distill.projected_loss import projected_sums
from attar.distill.step import completion_heads
from attar.distill.token_scores import compare_logits
from attar.engine.config import ModelConfig
from attar.engine.tokenizer import Tokenizer
from attar.engine.transformer import Params
from attar.runtime.session import Session

_Floats = NDArray[np.float32]


def evaluate_session(
    session: Session,
    teacher: Network | None,
    tokenizer: Tokenizer,
    data: DataSet,
    settings: EvalSettings,
    on_example: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Measures an exported file on held-out examples.

    Args:
      session: The opened file; it is rewound to empty before each example.
      teacher: What the file's distributions are compared to; None leaves the divergences out.
      tokenizer: Of the file.
      data: Held-out examples with completions.
      settings: How to evaluate; `seed` is that of the samples.
      on_example: Hears how many examples are done, over both passes.
    """
    sampled = data.examples[: settings.scored_examples]
    against = None if teacher is None else _Teacher(teacher, choose_bounds([len(e.prompt) for e in sampled], 1))
    width = max(len(example.completion) for example in data.examples)
    ends = tokenizer.eos_token_ids
    rows: list[dict[str, float]] = []
    completions: dict[int, str] = {}
    assisted: dict[int, str] = {}
    for index, example in enumerate(data.examples):
        session.rewind(0)
        first = np.array(session.prefill(example.prompt.tolist()))
        if index < len(sampled):
            rows.append(_score_given(session, against, first, example, width))
            session.rewind(len(example.prompt))
        if example.text_size is None:
            answer = tokenizer.decode(_continue_greedily(session, first, settings.max_new_tokens, ends))
            completions[index] = answer.strip()
            if has_final_answer(example.reference):
                assisted[index] = _with_calculator(session, tokenizer, example, answer, settings)
        on_example(index + 1)
    samples: dict[int, str] = {}
    if against is not None:
        rng = np.random.default_rng(settings.seed)
        for index in asked_examples(sampled):
            samples[index] = _score_sample(session, against, tokenizer, sampled[index], settings, rng, rows[index])
            on_example(len(data.examples) + len(samples))
    names = dict.fromkeys(name for row in rows for name in row)
    scores = {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}
    return summarize(data.examples, completions, scores, samples, settings.num_samples, assisted)


def _with_calculator(
    session: Session, tokenizer: Tokenizer, example: Example, answer: str, settings: EvalSettings
) -> str:
    """The greedy answer as it is with a calculator at hand."""

    def go_on(_: Sequence[int], begun: Sequence[str]) -> list[str]:
        head = tokenizer.encode(begun[0])
        left = min(settings.max_new_tokens - len(head), session.context_length - len(example.prompt) - len(head))
        if left < 1:
            return [""]
        prompt = [*example.prompt.tolist(), *head]
        return [tokenizer.decode(generate_with_session(session, prompt, left, tokenizer.eos_token_ids))]

    return answer_with_calculator([answer], go_on)[0].strip()


def generate_with_session(
    session: Session, prompt: Sequence[int], max_new_tokens: int, eos_token_ids: Sequence[int]
) -> list[int]:
    """Greedy continuation of one prompt, the end token left out; the session is rewound to empty first."""
    session.rewind(0)
    return _continue_greedily(session, session.prefill(prompt), max_new_tokens, eos_token_ids)


def sample_with_session(
    session: Session,
    prompt: Sequence[int],
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
    rng: np.random.Generator,
) -> tuple[list[int], _Floats]:
    """A completion at temperature 1 and the logits that each of its tokens was drawn from.

    Returns:
      N token ids, the end token included where it was drawn, and logits float32 [N, V].
    """
    session.rewind(0)
    logits = session.prefill(prompt)
    tokens: list[int] = []
    rows: list[_Floats] = []
    while True:
        tokens.append(_draw(logits, rng))
        rows.append(np.array(logits))
        if tokens[-1] in eos_token_ids or len(tokens) == max_new_tokens:
            return tokens, np.stack(rows)
        logits = session.decode(tokens[-1])


def _draw(logits: _Floats, rng: np.random.Generator) -> int:
    """Inverse-CDF sampling in float64, so that the last token's share of the mass is not lost to rounding."""
    scaled = np.exp(logits.astype(np.float64) - logits.max())
    cumulative = np.cumsum(scaled)
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def _continue_greedily(
    session: Session, logits: _Floats, max_new_tokens: int, eos_token_ids: Sequence[int]
) -> list[int]:
    """The likeliest token again and again, from the logits [V] that follow what the session holds."""
    tokens: list[int] = []
    token = int(logits.argmax())
    while token not in eos_token_ids:
        tokens.append(token)
        if len(tokens) == max_new_tokens:
            break
        token = int(session.decode(token).argmax())
    return tokens


def _score_given(
    session: Session, against: _Teacher | None, first: _Floats, example: Example, width: int
) -> dict[str, float]:
    """Scores per token of the given completion, whose first token is predicted by the logits `first` [V]."""
    length = len(example.completion)
    if length == 0:
        return {}
    rest = session.score(example.completion[:-1].tolist()) if length > 1 else np.empty((0, len(first)), np.float32)
    logits = np.concatenate([first[None], rest])  # [N, V]
    scores = {"nll": _nll(logits, example.completion) / length}
    if against is not None:
        sums = against.compare(example.prompt, example.completion, logits, width)
        scores |= {f"{name}_data": value / length for name, value in sums.items()}
    return scores


def _score_sample(
    session: Session,
    against: _Teacher,
    tokenizer: Tokenizer,
    example: Example,
    settings: EvalSettings,
    rng: np.random.Generator,
    row: dict[str, float],
) -> str:
    """Draws an answer, adds its scores to the example's and returns its text."""
    tokens, logits = sample_with_session(
        session, example.prompt.tolist(), settings.max_new_tokens, tokenizer.eos_token_ids, rng
    )
    sums = against.compare(example.prompt, np.array(tokens, np.int32), logits, settings.max_new_tokens)
    row |= {f"{name}_samples": value / len(tokens) for name, value in sums.items()}
    row["kl_student_teacher_sequence"] = sums["kl_student_teacher"]
    return tokenizer.decode(tokens).strip()


def _nll(logits: _Floats, target: NDArray[np.int32]) -> float:
    """Nats of `target` [N] under logits [N, V]."""
    wide = logits.astype(np.float64)
    largest = wide.max(axis=1)
    log_sum = np.log(np.exp(wide - largest[:, None]).sum(axis=1)) + largest
    return float((log_sum - wide[np.arange(len(target)), target]).sum())


@dataclass(frozen=True)
class _Teacher:
    """What a file's logits are compared to, and the lengths that prompts are padded to."""

    network: Network
    prompt_bounds: tuple[int, ...]

    def compare(
        self, prompt: NDArray[np.int32], completion: NDArray[np.int32], logits: _Floats, width: int
    ) -> dict[str, float]:
        """Sums over a completion of N tokens that the logits [N, V] predict, padded to `width` tokens."""
        example = Example(0, prompt, completion, "", "")
        batch = pad_batch([example], round_up(len(prompt), self.prompt_bounds), width, 0)
        padded = np.zeros((1, width, logits.shape[1]), np.float32)
        padded[0, : len(logits)] = logits
        sums = _compare(self.network.params, batch, jnp.asarray(padded), self.network.config)
        return {name: float(values[0]) for name, values in sums.items()}


@partial(jax.jit, static_argnames=("teacher",))
def _compare(
    teacher_params: Params, batch: Batch, student_logits: Float[Array, "1 N V"], teacher: ModelConfig
) -> dict[str, Float[Array, " 1"]]:
    heads, teacher_head, _ = completion_heads(teacher_params, teacher, batch, None, constant=True)
    vocab_size = min(student_logits.shape[-1], teacher.vocab_size)
    mask = completion_mask(jnp.asarray(batch.completion_lengths), batch.completions.shape[1])
    heads, labels = heads._replace(vocab_size=vocab_size), student_logits[..., :vocab_size]
    return projected_sums(_student_as_labels, heads, teacher_head, None, labels, mask)


def _student_as_labels(
    teacher_logits: Float[Array, "1 N V"], student_logits: Float[Array, "1 N V"], _: Array | None
) -> dict[str, Float[Array, "1 N"]]:
    return compare_logits(student_logits, teacher_logits)
