"""LiteRtSession: a .tflite decoder, run on the CPU by LiteRT (ai-edge-litert) with XNNPACK.

The cache buffers are bound as inputs and outputs of the same call, so that the file's cache updates happen in place:
a step copies only its own rows. Rows beyond the position are masked inside the graph, and are finite, so a padded
chunk may leave anything there.
"""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.options import CpuOptions, Options
from numpy.typing import NDArray

from attar.runtime.session import Logits, MemoryUsage, SessionError
from attar.runtime.tflite_check import check_buffers

# XNNPACK repacks weights once per signature unless it has a cache; this one lives in memory, not in a file.
_SHARED_WEIGHTS = ":memory"
# A rest of a prompt shorter than this fraction of the shortest chunk is decoded token by token instead of padded.
_PAD_FRACTION = 16


class LiteRtSession:
    """One sequence over a .tflite decoder; see `attar.runtime.session.Session`."""

    def __init__(self, path: Path, model: Any, context_length: int | None) -> None:
        self._path = path
        self._model = model
        self.signatures = frozenset(_checked_signatures(path, model))
        shapes = {n: tuple(d["shape"]) for n, d in model.get_input_tensor_details("decode").items()}
        cache_shapes = {name: shape for name, shape in shapes.items() if name.startswith("kv_cache_")}
        self._allocated = next(shape for name, shape in cache_shapes.items() if name.startswith("kv_cache_k"))[2]
        self._context_length = _resolve_context(path, self._allocated, context_length)
        self._caches = {name: _zeros(model, name, shape) for name, shape in cache_shapes.items()}
        self._cache_bytes = sum(4 * int(np.prod(shape)) for shape in cache_shapes.values())
        self._vocab_size = int(model.get_output_tensor_details("decode")["logits"]["shape"][-1])
        self._runners: dict[str, _Runner] = {}
        self._tokens: list[int] = []

    @classmethod
    def open(cls, path: str | Path, *, context_length: int | None = None, threads: int | None = None) -> Self:
        """Opens a `.tflite` file with signatures `prefill_T` and `decode`.

        Args:
          context_length: Most tokens to hold; None takes what the file's caches hold.
          threads: Worker threads; None takes the number of usable cores.

        Raises:
          SessionError: If the file is damaged, is no decoder with a cache, or holds fewer positions than asked for.
        """
        path = Path(path)
        check_buffers(path)
        _silence_exit()
        cpu = CpuOptions(num_threads=threads or len(os.sched_getaffinity(0)), xnnpack_weight_cache_path=_SHARED_WEIGHTS)
        with _captured_log() as log:
            try:
                return cls(path, CompiledModel.from_file(str(path), options=Options(cpu_options=cpu)), context_length)
            except (RuntimeError, ValueError) as error:
                raise SessionError(f"{path}: LiteRT cannot open this: {log.last_error() or error}") from None

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def context_length(self) -> int:
        return self._context_length

    @property
    def position(self) -> int:
        return len(self._tokens)

    def prefill(self, tokens: Sequence[int]) -> Logits:
        """Appends T >= 1 tokens and returns the logits after the last, float32 [V]."""
        ids = self._checked(tokens)
        with self._unchanged_on_failure():
            self._append(ids[:-1], "prefill")
            # Prefill signatures compute no logits, so the last token is always a decode step.
            logits: Logits = self._run("decode", ids[-1:], 1)[0]
        return logits

    def score(self, tokens: Sequence[int]) -> Logits:
        """Appends T >= 1 tokens and returns the logits after each, float32 [T, V]."""
        ids = self._checked(tokens)
        with self._unchanged_on_failure():
            return np.concatenate(self._append(ids, "score"))

    def decode(self, token: int) -> Logits:
        """Appends one token and returns the logits after it, float32 [V]."""
        return self.prefill([token])  # which plans a single decode step

    def rewind(self, position: int) -> None:
        """Keeps the first `position` tokens; the cache rows behind them are masked until they are overwritten."""
        if not 0 <= position <= self.position:
            raise SessionError(f"position must be between 0 and the {self.position} tokens held, got {position}")
        del self._tokens[position:]

    def memory(self) -> MemoryUsage:
        """Bytes of the file (LiteRT does not tell what it repacked) and of the caches."""
        return MemoryUsage(self._path.stat().st_size, self._cache_bytes, None)

    def close(self) -> None:
        """Releases the model and its caches; the session cannot be used afterwards."""
        with _captured_log():
            self._runners.clear()
            self._caches.clear()
            self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lengths(self, kind: str) -> list[int]:
        """Tokens per call for which the file has a signature of a kind, ascending."""
        return sorted(int(key.removeprefix(f"{kind}_")) for key in self.signatures if key.startswith(f"{kind}_"))

    def _checked(self, tokens: Sequence[int]) -> list[int]:
        if self._model is None:
            raise SessionError(f"{self._path}: the session is closed")
        ids = [int(token) for token in tokens]
        if not ids:
            raise SessionError("at least one token is needed, got none")
        wrong = [token for token in ids if not 0 <= token < self._vocab_size]
        if wrong:
            raise SessionError(f"token ids must be below the vocabulary's {self._vocab_size}, got {wrong[0]}")
        if self.position + len(ids) > self._context_length:
            raise SessionError(
                f"the context holds {self._context_length} tokens, got {self.position} + {len(ids)}; "
                "shorten the prompt, or export the model again with a larger context_length"
            )
        return ids

    @contextmanager
    def _unchanged_on_failure(self) -> Iterator[None]:
        before = self.position
        try:
            yield
        except RuntimeError as error:
            self.rewind(before)
            raise SessionError(f"{self._path}: LiteRT failed: {error}") from None

    def _append(self, ids: list[int], kind: str) -> list[Logits]:
        """Runs tokens chunk by chunk: the logits of each chunk, [T, V], or [0, 0] where its signature has none."""
        logits, done = [], 0
        for length in plan_chunks(len(ids), self._lengths(kind)):
            chunk = ids[done : done + length]
            logits.append(self._run("decode" if length == 1 else f"{kind}_{length}", chunk, length))
            done += len(chunk)
        return logits

    def _run(self, key: str, chunk: list[int], length: int) -> Logits:
        """Runs one signature on a chunk, padded to its length, and keeps the chunk's tokens.

        A chunk that would run over the end of the caches starts earlier and computes tokens anew that are held.
        """
        position = self.position
        start = min(position, self._allocated - length)
        tokens = np.zeros((1, length), np.int32)
        known = [*self._tokens[start:], *chunk]
        tokens[0, : len(known)] = known
        if key not in self._runners:
            self._runners[key] = _Runner(self._model, key, self._caches)
        logits = self._runners[key].run(tokens, np.arange(start, start + length, dtype=np.int32))
        self._tokens += chunk
        return logits[position - start : position - start + len(chunk)]


def plan_chunks(count: int, lengths: Sequence[int]) -> list[int]:
    """Lengths of the calls that take `count` tokens; 1 is a decode step, and only the last call may be padded.

    Args:
      lengths: Lengths to choose from, ascending, without 1.
    """
    chunks: list[int] = []
    while count > 0:
        fitting = [length for length in lengths if length <= count]
        if fitting:
            chunks.append(fitting[-1])
        elif lengths and count * _PAD_FRACTION > lengths[0]:
            chunks.append(lengths[0])
        else:
            chunks.append(1)
        count -= chunks[-1]
    return chunks


class _Runner:
    """One signature with its buffers. The caches are everyone's, and are updated in place."""

    def __init__(self, model: Any, key: str, caches: Mapping[str, Any]) -> None:
        self._model = model
        self._key = key
        self._tokens = model.create_input_buffer_by_name(key, "tokens")
        self._positions = model.create_input_buffer_by_name(key, "input_pos")
        self._inputs = {"tokens": self._tokens, "input_pos": self._positions, **caches}
        self._outputs = dict(caches)
        self._logits_shape: tuple[int, ...] | None = None
        details = model.get_output_tensor_details(key)
        if "logits" in details:
            self._logits_shape = tuple(details["logits"]["shape"])
            self._outputs["logits"] = model.create_output_buffer_by_name(key, "logits")

    def run(self, tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> Logits:
        """Logits [T, V] for tokens [1, T] at positions [T]; [0, 0] where the signature has none."""
        self._tokens.write(tokens)
        self._positions.write(positions)
        self._model.run_by_name(self._key, self._inputs, self._outputs)
        if self._logits_shape is None:
            return np.zeros((0, 0), np.float32)
        _, length, vocab_size = self._logits_shape
        logits: Logits = self._outputs["logits"].read(length * vocab_size, np.float32).reshape(length, vocab_size)
        return logits


def _checked_signatures(path: Path, model: Any) -> dict[str, Any]:
    """The signatures, after making sure that decode is one attar can drive."""
    signatures: dict[str, Any] = model.get_signature_list()
    decode = signatures.get("decode")
    if decode is None:
        found = ", ".join(sorted(signatures)) or "none"
        raise SessionError(f"{path}: not a decoder: needs the signature 'decode', got {found}")
    caches = {name for name in decode["inputs"] if name.startswith("kv_cache_")}
    unknown = set(decode["inputs"]) - caches - {"tokens", "input_pos"}
    if not caches or unknown or set(decode["outputs"]) != caches | {"logits"}:
        raise SessionError(
            f"{path}: 'decode' must take tokens, input_pos and kv_cache_*, and return the caches and logits; "
            f"got {', '.join(decode['inputs'])} -> {', '.join(decode['outputs'])}"
        )
    return signatures


def _zeros(model: Any, name: str, shape: tuple[int, ...]) -> Any:
    """A cache buffer of zeros: rows not written yet are multiplied by 0, which needs them finite."""
    buffer = model.create_input_buffer_by_name("decode", name)
    buffer.write(np.zeros(shape, np.float32))
    return buffer


def _resolve_context(path: Path, allocated: int, asked: int | None) -> int:
    if asked is not None and not 1 <= asked <= allocated:
        raise SessionError(f"{path}: context_length must be between 1 and the file's {allocated}, got {asked}")
    return asked or allocated


@cache
def _silence_exit() -> None:
    """Sends LiteRT's last words, logged by destructors after Python has ended, nowhere."""
    atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))


@dataclass(frozen=True)
class _Log:
    file: IO[bytes]

    def last_error(self) -> str | None:
        """The last line that LiteRT marked as an error."""
        self.file.seek(0)
        lines = self.file.read().decode(errors="replace").splitlines()
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        return errors[-1] if errors else None


@contextmanager
def _captured_log() -> Iterator[_Log]:
    """Catches what LiteRT writes to file descriptor 2 while it opens and closes models.

    It logs a dozen lines each time, says there alone why a file is refused, and offers Python no switch.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            yield _Log(file)
        finally:
            os.dup2(saved, 2)
            os.close(saved)
