"""OrtSession: an exported ONNX decoder, run by onnxruntime on the CPU.

The cache is allocated once, [1, K, context, H] per layer, and bound as both the past input and the present output:
GroupQueryAttention then writes new rows in place, so that a step copies nothing and rewinding only moves a counter.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from attar.runtime.session import Logits, MemoryUsage, SessionError

# Prompts are fed in pieces of this many tokens: it bounds the working memory, which grows with the square of a piece.
_CHUNK_TOKENS = 512
_DEFAULT_CONTEXT_TOKENS = 4096
_MODEL_NAME = "model.onnx"
_KEEP = "logits_to_keep"


class OrtSession:
    """One sequence over an ONNX decoder; see `attar.runtime.session.Session`."""

    def __init__(self, path: Path, model: Any, context_length: int) -> None:
        self._path = path
        self._model = model
        self._context_length = context_length
        self._position = 0
        self._vocab_size = _vocab_size(path, model)
        self._mask = np.ones((1, context_length), np.int64)
        self._binding = model.io_binding()
        self._caches = _bind_caches(path, model, self._binding, context_length)

    @classmethod
    def open(cls, path: str | Path, *, context_length: int | None = None, threads: int | None = None) -> Self:
        """Opens a `.onnx` file or a folder that holds `model.onnx`.

        Args:
          context_length: Most tokens to hold; None takes what the file states, at most 4,096.
          threads: Worker threads; None takes the number of usable cores.

        Raises:
          SessionError: If the file is damaged, is no decoder with a cache, or holds fewer positions than asked for.
        """
        path = Path(path)
        file = path / _MODEL_NAME if path.is_dir() else path
        model = _load(file, threads or len(os.sched_getaffinity(0)))
        return cls(file, model, _resolve_context(file, model, context_length))

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def context_length(self) -> int:
        return self._context_length

    @property
    def position(self) -> int:
        return self._position

    def prefill(self, tokens: Sequence[int]) -> Logits:
        """Appends T >= 1 tokens and returns the logits after the last, float32 [V]."""
        logits: Logits = self._append(tokens, keep_all=False)[-1]
        return logits

    def score(self, tokens: Sequence[int]) -> Logits:
        """Appends T >= 1 tokens and returns the logits after each, float32 [T, V]."""
        return self._append(tokens, keep_all=True)

    def decode(self, token: int) -> Logits:
        """Appends one token and returns the logits after it, float32 [V]."""
        return self.prefill([token])

    def rewind(self, position: int) -> None:
        """Keeps the first `position` tokens; rows behind them are overwritten by the tokens that follow."""
        if not 0 <= position <= self._position:
            raise SessionError(f"position must be between 0 and the {self._position} tokens held, got {position}")
        self._position = position

    def memory(self) -> MemoryUsage:
        """Bytes on disk of the weights (onnxruntime does not tell what it repacked them to) and of the cache."""
        files = [self._path, self._path.with_name(self._path.name + ".data")]
        return MemoryUsage(
            weights_bytes=sum(file.stat().st_size for file in files if file.is_file()),
            cache_bytes=sum(cache.nbytes for cache in self._caches),
            scratch_bytes=None,
        )

    def close(self) -> None:
        """Releases the model and its cache; the session cannot be used afterwards."""
        self._binding = self._model = None
        self._caches = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checked(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        """The ids as int64 [T], after checking them against vocabulary and context."""
        if self._model is None:
            raise SessionError(f"{self._path}: the session is closed")
        ids = np.asarray(tokens, np.int64)
        if ids.ndim != 1 or not ids.size:
            raise SessionError(f"at least one token is needed, got an array of shape {ids.shape}")
        if ids.min() < 0 or ids.max() >= self._vocab_size:
            wrong = ids[(ids < 0) | (ids >= self._vocab_size)][0]
            raise SessionError(f"token ids must be below the vocabulary's {self._vocab_size}, got {wrong}")
        if self._position + ids.size > self._context_length:
            raise SessionError(
                f"the context holds {self._context_length} tokens, got {self._position} + {ids.size}; "
                "open the file with a larger context_length or shorten the prompt"
            )
        return ids

    def _append(self, tokens: Sequence[int], keep_all: bool) -> Logits:
        """Runs the tokens piece by piece: the logits after each, or after the last of each piece, [.., V]."""
        ids, start = self._checked(tokens), self._position
        pieces = [ids[i : i + _CHUNK_TOKENS] for i in range(0, len(ids), _CHUNK_TOKENS)]
        try:
            logits = [self._step(piece, len(piece) if keep_all else 1) for piece in pieces]
        except SessionError:
            self._position = start
            raise
        return logits[0] if len(logits) == 1 else np.concatenate(logits)

    def _step(self, ids: NDArray[np.int64], keep: int) -> Logits:
        """Runs T new tokens and returns the logits of the last `keep`, float32 [keep, V]."""
        end = self._position + ids.size
        binding = self._binding
        if binding is None or self._model is None:
            raise SessionError(f"{self._path}: the session is closed; open the file again")
        binding.bind_cpu_input("input_ids", ids[None])
        binding.bind_cpu_input("attention_mask", self._mask[:, :end])
        # An input that may be left out is refused by bind_cpu_input, not by this.
        binding.bind_ortvalue_input(_KEEP, onnxruntime.OrtValue.ortvalue_from_numpy(np.array([keep], np.int64)))
        binding.bind_output("logits", "cpu")
        try:
            self._model.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions share no narrower base
            raise SessionError(f"{self._path}: onnxruntime failed: {_first_line(error)}") from None
        self._position = end
        # Outputs come back in the order in which they were bound.
        logits: Logits = binding.get_outputs()[-1].numpy()[0]
        return logits


def _load(file: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: they come back as exceptions
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no narrower base
        raise SessionError(f"{file}: onnxruntime cannot open this: {_first_line(error)}") from None


def _resolve_context(file: Path, model: Any, asked: int | None) -> int:
    """The context to allocate, within what the file's rotary tables hold."""
    stated = model.get_modelmeta().custom_metadata_map.get("attar.context_length")
    if stated is None:
        raise SessionError(f"{file}: not an ONNX decoder written by attar (no attar.context_length in its metadata)")
    if asked is None:
        return min(int(stated), _DEFAULT_CONTEXT_TOKENS)
    if not 1 <= asked <= int(stated):
        raise SessionError(f"{file}: context_length must be between 1 and the file's {stated}, got {asked}")
    return asked


def _vocab_size(file: Path, model: Any) -> int:
    shapes = {output.name: output.shape for output in model.get_outputs()}
    if "logits" not in shapes or not isinstance(shapes["logits"][-1], int):
        raise SessionError(f"{file}: the graph has no output 'logits' with a known vocabulary")
    return int(shapes["logits"][-1])


def _bind_caches(file: Path, model: Any, binding: Any, context_length: int) -> list[NDArray[np.float32]]:
    """Allocates every layer's cache, [1, K, context, H], and binds it as input and output alike."""
    caches = []
    for entry in model.get_inputs():
        if not entry.name.startswith("past_key_values."):
            continue
        _, heads, _, head_dim = entry.shape
        cache = np.zeros((1, heads, context_length, head_dim), np.float32)
        value = onnxruntime.OrtValue.ortvalue_from_numpy(cache)
        binding.bind_ortvalue_input(entry.name, value)
        binding.bind_ortvalue_output(entry.name.replace("past_key_values", "present"), value)
        caches.append(cache)
    if not caches:
        raise SessionError(f"{file}: the graph has no inputs past_key_values.N.key and value, so it keeps no cache")
    return caches


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
