"""Session: the one interface that chat, bench, eval and the export verifier drive, whatever runs the model.

A session holds one sequence. `prefill` appends prompt tokens and `decode` appends one token; both return the
logits that follow. `rewind` drops tokens from the end, so that a conversation continues without re-reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

Backend = Literal["native", "onnx", "litert"]
Logits = NDArray[np.float32]


class SessionError(RuntimeError):
    """A model file that cannot be run, or a request that the session cannot serve."""


@dataclass(frozen=True)
class MemoryUsage:
    """Bytes that a session holds. A backend that cannot tell a part apart reports None for it."""

    weights_bytes: int | None
    cache_bytes: int | None
    scratch_bytes: int | None


class Session(Protocol):
    """A model file opened for one sequence.

    Attributes:
      vocab_size: Length V of every logits vector.
      context_length: Most tokens that the sequence may hold.
      position: Tokens held now.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def position(self) -> int: ...

    def prefill(self, tokens: Sequence[int]) -> Logits:
        """Appends T >= 1 tokens and returns the logits after the last, float32 [V].

        Raises:
          SessionError: If the tokens do not fit the context or an id is outside the vocabulary; the
            sequence is then unchanged.
        """
        ...

    def score(self, tokens: Sequence[int]) -> Logits:
        """Appends T >= 1 tokens and returns the logits after each, float32 [T, V]."""
        ...

    def decode(self, token: int) -> Logits:
        """Appends one token and returns the logits after it, float32 [V]."""
        ...

    def rewind(self, position: int) -> None:
        """Keeps the first `position` tokens and drops the others.

        Raises:
          SessionError: If fewer tokens are held, or a local layer's ring no longer holds what is needed.
        """
        ...

    def memory(self) -> MemoryUsage: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def backend_of(path: Path) -> Backend:
    """The backend that runs a file, by its ending: .gguf, .onnx (or a folder with model.onnx), .tflite.

    Raises:
      SessionError: If the path does not exist or no backend runs it.
    """
    if not path.exists():
        raise SessionError(f"{path}: no such file or folder")
    if (path / "model.onnx").is_file() or path.suffix == ".onnx":
        return "onnx"
    if path.suffix == ".gguf":
        return "native"
    if path.suffix == ".tflite":
        return "litert"
    raise SessionError(f"{path}: no runtime opens this; expected .gguf, .onnx, .tflite or a folder with model.onnx")


@dataclass(frozen=True)
class NativeOptions:
    """What the C runtime alone lets a caller choose.

    Attributes:
      activation_bits: 8 (None) is fast; 16 gives nearly the logits of float arithmetic on the same weights. The head
        has 16 either way.
      cache_type: "int8" halves the cache of "f16", and reads it faster at depth.
      overflow: When the context is full: an error, or the older half of it slides out.
      keep_tokens: First tokens that never slide out, such as a system prompt's.
    """

    activation_bits: int | None = None
    cache_type: Literal["f16", "int8"] = "f16"
    overflow: Literal["refuse", "slide"] = "refuse"
    keep_tokens: int = 0


DEFAULT_OPTIONS = NativeOptions()


def open_session(
    path: str | Path,
    *,
    context_length: int | None = None,
    threads: int | None = None,
    native: NativeOptions = DEFAULT_OPTIONS,
) -> Session:
    """Opens an exported model with the backend its ending names.

    Args:
      path: A `.gguf`, `.onnx` or `.tflite` file, or a folder that holds `model.onnx`.
      context_length: Most tokens to hold; None takes what the file states (at most 4,096).
      threads: Worker threads; None takes the number of usable cores.
      native: What holds where the C runtime opens the file.

    Raises:
      SessionError: If the file cannot be run.
    """
    path = Path(path)
    backend = backend_of(path)
    # One branch per backend, imported late: a phone build has only the native one.
    if backend == "native":
        from attar.runtime.native import NativeSession

        return NativeSession.open(path, context_length=context_length, threads=threads, options=native)
    if backend == "onnx":
        from attar.runtime.ort import OrtSession

        return OrtSession.open(path, context_length=context_length, threads=threads)
    from attar.runtime.litert import LiteRtSession

    return LiteRtSession.open(path, context_length=context_length, threads=threads)
