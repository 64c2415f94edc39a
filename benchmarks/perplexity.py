"""Likelihood of the same text, in the same windows, by attar and by llama.cpp; and what 8-bit activations cost.

Windows are read from an empty context, after BOS where the model wants one; every token but the first is scored. For
the cost of 8 bits, attar's own 16-bit activations stand for float arithmetic on the same weights; `benchmarks.parity`
checks those against JAX.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attar.runtime.native import NativeModel, NativeSession, NativeTokenizer
from attar.runtime.session import NativeOptions
from benchmarks.english import TEXT_BYTES, english_text
from benchmarks.peers import run_json

WINDOW = 1024
PIECE = 128  # tokens whose logits are held at once
KL_WINDOWS = 8

PERPLEXITY_BAR = 0.003  # of llama.cpp's
BITS_KL_BAR = 0.003  # nats


@dataclass(frozen=True)
class Likelihood:
    """Of one model on one text.

    Attributes:
      kl_of_8_bits: Mean KL(16-bit ‖ 8-bit activations) in nats, over the first windows.
      perplexity_16_bits: attar's with 16-bit activations, over the same first windows; `perplexity_8_bits` beside it.
    """

    perplexity: float
    peer_perplexity: float
    kl_of_8_bits: float
    perplexity_8_bits: float
    perplexity_16_bits: float
    scored_tokens: int


def make_windows(ids: list[int], bos: int | None, length: int = WINDOW) -> list[list[int]]:
    """Consecutive windows of `length` tokens, BOS included where there is one; a last one of one token is left out."""
    head = [] if bos is None else [bos]
    step = length - len(head)
    windows = [head + ids[at : at + step] for at in range(0, len(ids), step)]
    return [window for window in windows if len(window) > 1]


def compare_likelihood(path: Path, driver: Path, threads: int, *, quick: bool = False) -> Likelihood:
    """Scores the text with both; `quick` takes a tenth of it."""
    model = NativeModel(path)
    text = english_text(TEXT_BYTES // 10 if quick else TEXT_BYTES)
    tokenizer = NativeTokenizer(model)
    # What encoding adds by itself is what the model wants before every text.
    added = tokenizer.encode("", add_special=True)
    windows = make_windows(tokenizer.encode(text), added[0] if added else None)
    ids = np.concatenate([np.asarray(window, np.int32) for window in windows])
    command = [driver, "likelihood", path, str(threads), str(WINDOW), "1"]
    peer = run_json(command, f"llama.cpp on {path.name}", stdin=ids.tobytes(), seconds=7200)
    first = windows[: 2 if quick else KL_WINDOWS]
    eight, sixteen = _session(model, threads, 8), _session(model, threads, 16)
    with eight, sixteen:
        total, count = 0.0, 0
        for window in windows:
            total += sum(float(_nll(rows, targets).sum()) for rows, targets in _score(eight, window))
            count += len(window) - 1
        kl, nll_8, nll_16 = _cost_of_8_bits(sixteen, eight, first)
    return Likelihood(
        perplexity=math.exp(total / count),
        peer_perplexity=math.exp(peer["mean_nll"]),
        kl_of_8_bits=kl,
        perplexity_8_bits=math.exp(nll_8),
        perplexity_16_bits=math.exp(nll_16),
        scored_tokens=count,
    )


def _session(model: NativeModel, threads: int, bits: int) -> NativeSession:
    return NativeSession(model, context_length=WINDOW, threads=threads, options=NativeOptions(activation_bits=bits))


def _score(session: NativeSession, window: list[int]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Logits [t, V] and the tokens [t] that follow, piece by piece."""
    session.rewind(0)
    for at in range(0, len(window) - 1, PIECE):
        part = window[at : min(at + PIECE, len(window) - 1)]
        yield session.score(part), np.asarray(window[at + 1 : at + 1 + len(part)], np.int64)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _nll(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    largest = logits.max(axis=-1)
    sums = np.exp(logits - largest[:, None]).sum(axis=-1, dtype=np.float64)
    return np.log(sums) + largest - logits[np.arange(len(targets)), targets]


def _cost_of_8_bits(
    sixteen: NativeSession, eight: NativeSession, windows: list[list[int]]
) -> tuple[float, float, float]:
    """Mean KL(16 ‖ 8 bits), and the mean negative log-likelihoods of 8 and of 16 bits."""
    kl, nll_8, nll_16, count = 0.0, 0.0, 0.0, 0
    for window in windows:
        for (precise, targets), (fast, _) in zip(_score(sixteen, window), _score(eight, window), strict=True):
            log_p, log_q = _log_softmax(precise), _log_softmax(fast)
            kl += float((np.exp(log_p) * (log_p - log_q)).sum())
            rows = np.arange(len(targets))
            nll_8 -= float(log_q[rows, targets].sum())
            nll_16 -= float(log_p[rows, targets].sum())
            count += len(targets)
    return kl / count, nll_8 / count, nll_16 / count
