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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.options import CpuOptions, Options

from attar.runtime.litert_workspace import Workspace, find_families
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
        self._families = find_families(path, model)
        self._context_length = _resolve_context(path, self._families[-1].capacity, context_length)
        self._workspace = Workspace(model, self._families[0])
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
            except SessionError:
                raise
            except (RuntimeError, ValueError) as error:
                raise SessionError(f"{path}: LiteRT cannot open this: {log.last_error() or error}") from None

    @property
    def vocab_size(self) -> int:
        return self._families[-1].vocab_size

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
        self._check_open()
        if not 0 <= position <= self.position:
            raise SessionError(f"position must be between 0 and the {self.position} tokens held, got {position}")
        del self._tokens[position:]
        if not self._tokens and self._workspace.family is not self._families[0]:
            self._workspace = Workspace(self._model, self._families[0])

    def memory(self) -> MemoryUsage:
        """Bytes of the file (LiteRT does not tell what it repacked) and of the caches."""
        self._check_open()
        return MemoryUsage(self._path.stat().st_size, self._workspace.cache_bytes, None)

    def close(self) -> None:
        """Releases the model and its caches; the session cannot be used afterwards."""
        with _captured_log():
            self._model = None
            vars(self).pop("_workspace", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._model is None:
            raise SessionError(f"{self._path}: the session is closed")

    def _checked(self, tokens: Sequence[int]) -> list[int]:
        self._check_open()
        ids = [int(token) for token in tokens]
        if not ids:
            raise SessionError("at least one token is needed, got none")
        wrong = [token for token in ids if not 0 <= token < self.vocab_size]
        if wrong:
            raise SessionError(f"token ids must be below the vocabulary's {self.vocab_size}, got {wrong[0]}")
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
            del self._tokens[before:]
            raise SessionError(f"{self._path}: LiteRT failed: {error}") from None

    def _append(self, ids: list[int], kind: str) -> list[Logits]:
        """Runs tokens chunk by chunk: the logits of each chunk, [T, V], or [0, 0] where its signature has none."""
        logits, done = [], 0
        for length in plan_chunks(len(ids), self._families[-1].lengths(kind)):
            chunk = ids[done : done + length]
            logits.append(self._run("decode" if length == 1 else f"{kind}_{length}", chunk, length))
            done += len(chunk)
        return logits

    def _run(self, signature: str, chunk: list[int], length: int) -> Logits:
        """Runs one signature on a chunk, padded to its length, and keeps the chunk's tokens.

        A chunk that would run over the end of the caches starts earlier and computes tokens anew that are held.
        """
        position = self.position
        self._reserve(signature, position + length)
        start = min(position, self._workspace.family.capacity - length)
        tokens = np.zeros((1, length), np.int32)
        known = [*self._tokens[start:], *chunk]
        tokens[0, : len(known)] = known
        logits = self._workspace.run(signature, tokens, np.arange(start, start + length, dtype=np.int32))
        self._tokens += chunk
        return logits[position - start : position - start + len(chunk)]

    def _reserve(self, signature: str, positions: int) -> None:
        """Moves to larger caches where these do not hold so many positions or cannot run the signature."""
        enough = [f for f in self._families if f.capacity >= positions and signature in f.signatures]
        family = enough[0] if enough else self._families[-1]
        if family.capacity > self._workspace.family.capacity:
            self._workspace = self._workspace.moved_to(family, self.position)


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
