"""The arithmetic of verification: a runtime's logits and a file's weights against JAX's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from attar.engine.config import ModelConfig
from attar.engine.generate import bucket_size
from attar.engine.transformer import Params, hidden_states, project_logits

Float32 = NDArray[np.float32]

# Rows of logits held at a time: with a vocabulary of 262,144 a row is a megabyte.
_PIECE_TOKENS = 64
# Tokens at the end of a prompt that are read one by one.
_DECODED_TOKENS = 16
# A choice whose reference logit is this close to the best one counts as the same choice.
NEAR_TIE_LOGITS = 0.05


class VerifiedSession(Protocol):
    """What is needed of `attar.runtime.session.Session`, which this package may not import."""

    @property
    def context_length(self) -> int: ...
    def prefill(self, tokens: Sequence[int], /) -> Float32: ...
    def score(self, tokens: Sequence[int], /) -> Float32: ...
    def decode(self, token: int, /) -> Float32: ...
    def rewind(self, position: int, /) -> None: ...
    def close(self) -> None: ...


class Figures:
    """Sums over the positions that have been compared.

    Attributes:
      kl: Sum of KL(reference ‖ measured), nats.
      agreed: Positions with the same most likely token, near-ties apart.
      reference_nll: Mean negative log-likelihood of the prompts' own tokens, nats; likewise `measured_nll`.
    """

    def __init__(self) -> None:
        self.positions = 0
        self.max_abs_error = 0.0
        self.kl = 0.0
        self.agreed = 0
        self._targets = 0
        self._reference_nll = 0.0
        self._measured_nll = 0.0

    @property
    def reference_nll(self) -> float:
        return self._reference_nll / max(1, self._targets)

    @property
    def measured_nll(self) -> float:
        return self._measured_nll / max(1, self._targets)

    def add(self, reference: Float32, measured: Float32, targets: Sequence[int]) -> None:
        """Takes in logits [T, V] of the same positions, of which the first len(targets) have a next token."""
        self.positions += len(reference)
        # np.maximum keeps a NaN, which max() would lose.
        self.max_abs_error = float(np.maximum(self.max_abs_error, np.abs(reference - measured).max()))
        log_p, log_q = log_softmax(reference), log_softmax(measured)
        self.kl += float((np.exp(log_p) * (log_p - log_q)).sum())
        chosen = np.take_along_axis(reference, measured.argmax(axis=-1)[:, None], axis=-1)[:, 0]
        self.agreed += int((chosen >= reference.max(axis=-1) - NEAR_TIE_LOGITS).sum())
        rows, ids = np.arange(len(targets)), np.asarray(targets, np.int64)
        self._targets += len(targets)
        self._reference_nll -= float(log_p[rows, ids].sum())
        self._measured_nll -= float(log_q[rows, ids].sum())


def compare_logits(
    config: ModelConfig, params: Params, session: VerifiedSession, prompts: Sequence[Sequence[int]]
) -> Figures:
    """A session's logits on prompts against those of the JAX forward pass."""
    figures = Figures()
    for prompt in prompts:
        reference = ReferenceLogits(config, params, prompt)
        split = len(prompt) - min(_DECODED_TOKENS, len(prompt) // 2)
        session.rewind(0)
        figures.add(reference.rows(split - 1, split), session.prefill(prompt[:split])[None], [])
        session.rewind(0)
        for start, measured in _read_in_pieces(session, prompt, split):
            end = start + len(measured)
            figures.add(reference.rows(start, end), measured, prompt[start + 1 : end + 1])
    return figures


def mean_nll(config: ModelConfig, params: Params, prompts: Sequence[Sequence[int]]) -> float:
    """Mean negative log-likelihood of the prompts' tokens after the first in JAX, nats."""
    figures = Figures()
    for prompt in prompts:
        reference = ReferenceLogits(config, params, prompt)
        for start in range(0, len(prompt), _PIECE_TOKENS):
            rows = reference.rows(start, min(start + _PIECE_TOKENS, len(prompt)))
            figures.add(rows, rows, prompt[start + 1 : start + 1 + len(rows)])
    return figures.reference_nll


def largest_weight_error(
    weights: Iterable[tuple[str, Float32]], stored: Mapping[str, Float32], norm_offset: float = 0.0
) -> float:
    """Largest deviation of a stored weight, relative to the largest of its row; infinite if a shape differs.

    Args:
      norm_offset: 1 where norms multiply by 1 + w (Gemma): files store that sum, so w itself is rounded with it.
    """
    worst = 0.0
    for name, weight in weights:
        if name not in stored or stored[name].shape != weight.shape:
            return float("inf")
        largest = np.abs(weight + np.float32(norm_offset if weight.ndim == 1 else 0.0)).max(axis=-1)
        error = np.abs(stored[name] - weight).max(axis=-1)
        # A row of zeros has no magnitude: there the error counts as it is.
        worst = float(np.maximum(worst, np.max(error / np.where(largest > 0, largest, 1))))
    return worst


def log_softmax(logits: Float32) -> NDArray[np.float64]:
    """Log-probabilities over the last axis, in float64: the differences of interest are small."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    log_probabilities: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_probabilities


def _read_in_pieces(session: VerifiedSession, prompt: Sequence[int], split: int) -> Iterator[tuple[int, Float32]]:
    """Logits [T, V] of a prompt with the position of their first row; from `split` on, tokens are read one by one."""
    for start in range(0, split, _PIECE_TOKENS):
        yield start, session.score(prompt[start : min(start + _PIECE_TOKENS, split)])
    for position in range(split, len(prompt)):
        yield position, session.decode(prompt[position])[None]


class ReferenceLogits:
    """JAX's logits of one prompt, projected piece by piece."""

    def __init__(self, config: ModelConfig, params: Params, prompt: Sequence[int]) -> None:
        self._config = config
        self._params = params
        # Padded behind, which a causal model does not notice, so that prompts of many lengths share a compilation.
        padded = np.zeros((1, bucket_size(len(prompt) + _PIECE_TOKENS)), np.int32)
        padded[0, : len(prompt)] = prompt
        self._hidden = _hidden_states(params, jnp.asarray(padded), config)[0]  # [T, D]

    def rows(self, start: int, end: int) -> Float32:
        """Logits of positions start to end, at most _PIECE_TOKENS of them, [end - start, V]."""
        # Two shapes are compiled: whole pieces, and the single positions of token-by-token reading.
        piece = jax.lax.dynamic_slice_in_dim(self._hidden, start, 1 if end - start == 1 else _PIECE_TOKENS)
        return np.asarray(_project(self._params, piece, self._config))[: end - start]


@partial(jax.jit, static_argnames="config")
def _hidden_states(params: Params, tokens: jax.Array, config: ModelConfig) -> jax.Array:
    return hidden_states(params, config, tokens)


@partial(jax.jit, static_argnames="config")
def _project(params: Params, hidden: jax.Array, config: ModelConfig) -> jax.Array:
    return project_logits(params, config, hidden)
