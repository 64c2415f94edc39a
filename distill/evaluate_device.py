"""Evaluation of an exported file through its own runtime: the same figures as `evaluate`, taken on the device's side.

The file answers and is scored by its Session; the teacher runs in JAX over the tokens that the file sampled. So a
quantised file is measured as it ships, not as a simulation of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from attar.distill.batches import Batch, choose_bounds, pad_batch, round_up
from attar.distill.bootstrap import bootstrap_interval
from attar.distill.data import DataSet, Example
from attar.distill.divergences import forward_kl, reverse_kl
from attar.distill.evaluate import EvalSettings, Evaluation, Network, Sample, text_scores
from attar.distill.losses import completion_mask
from attar.distill.projected_loss import projected_sums
from attar.distill.step import completion_heads
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
    examples = data.examples
    sampled = examples[: settings.scored_examples]
    texts, nats = [], []
    for index, example in enumerate(examples):
        session.rewind(0)
        first = np.array(session.prefill(example.prompt.tolist()))
        if index < len(sampled):
            nats.append(_nll(session, first, example.completion))
            session.rewind(len(example.prompt))
        answer = _continue_greedily(session, first, settings.max_new_tokens, tokenizer.eos_token_ids)
        texts.append(tokenizer.decode(answer).strip())
        on_example(len(texts))
    nll, tokens = np.array(nats), np.array([len(example.completion) for example in sampled])
    scores = dict(text_scores(texts, [example.reference for example in examples]))
    scores["nll"] = nll[tokens > 0] / tokens[tokens > 0]
    if teacher is not None:
        done = len(examples)
        scores |= _divergences(session, teacher, tokenizer, sampled, settings, lambda n: on_example(done + n))
    return Evaluation(
        {name: bootstrap_interval(values) for name, values in scores.items()},
        math.exp(nll.sum() / max(tokens.sum(), 1)),
        tuple(
            Sample(example.prompt_text, example.reference, text)
            for example, text in list(zip(examples, texts, strict=True))[: settings.num_samples]
        ),
    )


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


def _nll(session: Session, first: _Floats, target: NDArray[np.int32]) -> float:
    """Nats of `target`, whose first token is predicted by the logits `first` [V]."""
    if len(target) == 0:
        return 0.0
    rest = session.score(target[:-1].tolist()) if len(target) > 1 else np.empty((0, len(first)), np.float32)
    logits = np.concatenate([first[None], rest]).astype(np.float64)  # [N, V]
    largest = logits.max(axis=1)
    log_sum = np.log(np.exp(logits - largest[:, None]).sum(axis=1)) + largest
    return float((log_sum - logits[np.arange(len(target)), target]).sum())


def _divergences(
    session: Session,
    teacher: Network,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    settings: EvalSettings,
    on_example: Callable[[int], None],
) -> dict[str, NDArray[np.float64]]:
    """Per example, per token: both divergences to the teacher on the file's own samples; and the sum over a sample."""
    rng = np.random.default_rng(settings.seed)
    means: dict[str, list[float]] = {"kl_student_teacher_samples": [], "kl_teacher_student_samples": []}
    sums: list[float] = []
    for done, (batch, logits) in enumerate(_sampled(session, tokenizer, examples, settings, rng), start=1):
        reverse, forward = _divergence(teacher.params, batch, jnp.asarray(logits)[None], teacher.config)
        length = int(batch.completion_lengths[0])
        sums.append(float(reverse))
        means["kl_student_teacher_samples"].append(float(reverse) / length)
        means["kl_teacher_student_samples"].append(float(forward) / length)
        on_example(done)
    return {**{k: np.array(v) for k, v in means.items()}, "kl_student_teacher_sequence": np.array(sums)}


def _sampled(
    session: Session,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    settings: EvalSettings,
    rng: np.random.Generator,
) -> Iterator[tuple[Batch, _Floats]]:
    """For each example its sampled completion as a batch of one, padded to one shape, and the logits [N, V]."""
    widths = choose_bounds([len(example.prompt) for example in examples], 1)
    for example in examples:
        tokens, logits = sample_with_session(
            session, example.prompt.tolist(), settings.max_new_tokens, tokenizer.eos_token_ids, rng
        )
        answered = Example(example.line, example.prompt, np.array(tokens, np.int32), "", "")
        width = round_up(len(example.prompt), widths)
        batch = pad_batch([answered], width, settings.max_new_tokens, 0)
        padded = np.zeros((settings.max_new_tokens, logits.shape[1]), np.float32)
        padded[: len(tokens)] = logits
        yield batch, padded


@partial(jax.jit, static_argnames=("teacher",))
def _divergence(
    teacher_params: Params, batch: Batch, student_logits: Float[Array, "1 N V"], teacher: ModelConfig
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """KL(student ‖ teacher) and KL(teacher ‖ student), summed over the tokens of one completion."""
    heads, teacher_head, _ = completion_heads(teacher_params, teacher, batch, None)
    vocab_size = min(student_logits.shape[-1], teacher.vocab_size)
    mask = completion_mask(jnp.asarray(batch.completion_lengths), batch.completions.shape[1])
    heads, labels = heads._replace(vocab_size=vocab_size), student_logits[..., :vocab_size]
    sums = projected_sums(_both_kls, heads, teacher_head, None, labels, mask)
    return sums["reverse"][0], sums["forward"][0]


def _both_kls(
    teacher_logits: Float[Array, "1 N V"], student_logits: Float[Array, "1 N V"], _: Array | None
) -> dict[str, Float[Array, "1 N"]]:
    return {
        "reverse": reverse_kl(student_logits, teacher_logits),
        "forward": forward_kl(student_logits, teacher_logits),
    }
