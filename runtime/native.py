"""Sessions, tokenizers and samplers of the C library (`runtime/csrc`), for GGUF files."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Sequence
from ctypes import POINTER, byref, c_float, c_int32, c_size_t, c_void_p
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from attar.runtime._native import (
    ATTAR_ERROR_ARGUMENT,
    ATTAR_OK,
    AttarError,
    AttarMemory,
    AttarModelInfo,
    AttarSamplerParams,
    AttarSessionParams,
    check,
    library,
    text_at,
)
from attar.runtime.session import DEFAULT_OPTIONS, Logits, MemoryUsage, NativeOptions, SessionError

__all__ = ["NativeModel", "NativeSampler", "NativeSession", "NativeTokenizer", "kernels_name", "library_version"]


def library_version() -> str:
    """Version of the C library."""
    version: bytes = library().attar_version()
    return version.decode()


def kernels_name() -> str:
    """Instruction set whose kernels this CPU runs: "avx512", "avx2" or "scalar"."""
    name: bytes = library().attar_kernels_name()
    return name.decode()


class NativeModel:
    """An opened GGUF file, shared by any number of sessions and tokenizers; the first session loads its weights.

    Attributes:
      info: Hyperparameters; see `attar_model_info` in `include/attar.h`.
    """

    def __init__(self, path: str | Path) -> None:
        """Maps and checks a file.

        Raises:
          SessionError: If it cannot be read, is no well-formed GGUF, or holds a model this runtime does not run.
        """
        self._handle = c_void_p()
        check(library().attar_model_open, os.fsencode(path), byref(self._handle))
        self.path = Path(path)
        self.info = AttarModelInfo()
        library().attar_model_get_info(self._handle, byref(self.info))
        # Freed with the last session or tokenizer that refers to it.
        weakref.finalize(self, library().attar_model_free, self._handle)

    @property
    def handle(self) -> c_void_p:
        return self._handle

    @property
    def architecture(self) -> str:
        return self.info.architecture.decode()

    def metadata(self, key: str) -> str | None:
        """A string of the file's metadata, such as "tokenizer.chat_template"; None if absent."""
        length = c_size_t()
        address = library().attar_model_metadata(self._handle, key.encode(), byref(length))
        text = text_at(address, length.value)
        return None if text is None else text.decode("utf-8", "replace")

    def plan(
        self, context_length: int | None = None, *, threads: int | None = None, options: NativeOptions = DEFAULT_OPTIONS
    ) -> MemoryUsage:
        """Bytes that a session of this context would hold; nothing is allocated or loaded.

        Raises:
          SessionError: If the context is longer than the model was trained for.
        """
        memory = AttarMemory()
        params = _session_params(context_length, threads, None, None, options)
        check(library().attar_plan, self._handle, byref(params), byref(memory))
        return MemoryUsage(memory.weight_bytes, memory.cache_bytes, memory.scratch_bytes)


_CACHE_TYPES = {"f16": 0, "int8": 1}
_OVERFLOWS = {"refuse": 0, "slide": 1}


def _session_params(
    context_length: int | None,
    threads: int | None,
    batch_tokens: int | None,
    memory_budget_bytes: int | None,
    options: NativeOptions,
) -> AttarSessionParams:
    for name, value in (("context_length", context_length), ("threads", threads), ("batch_tokens", batch_tokens)):
        if value is not None and not 1 <= value < 2**31:
            raise SessionError(f"{name} must be at least 1, got {value}")
    if memory_budget_bytes is not None and not 1 <= memory_budget_bytes < 2**64:
        raise SessionError(f"memory_budget_bytes must be at least 1, got {memory_budget_bytes}")
    if not 0 <= options.keep_tokens < 2**31:
        raise SessionError(f"keep_tokens must be at least 0, got {options.keep_tokens}")
    return AttarSessionParams(
        context_length or 0,
        threads or 0,
        batch_tokens or 0,
        options.activation_bits or 0,
        _CACHE_TYPES[options.cache_type],
        _OVERFLOWS[options.overflow],
        options.keep_tokens,
        memory_budget_bytes or 0,
    )


class NativeSession:
    """One sequence over a GGUF file; see `attar.runtime.session.Session`."""

    def __init__(
        self,
        model: NativeModel,
        *,
        context_length: int | None = None,
        threads: int | None = None,
        batch_tokens: int | None = None,
        memory_budget_bytes: int | None = None,
        options: NativeOptions = DEFAULT_OPTIONS,
    ) -> None:
        """Plans and allocates a session; the first of a model loads its weights.

        Args:
          context_length: Most tokens to hold; None takes the model's, at most 4,096.
          threads: Worker threads; None takes the usable cores.
          batch_tokens: Most prompt tokens run at once; None takes 256. Working memory grows with it.
          memory_budget_bytes: Refuse if weights, cache and scratch need more; None is no limit.
          options: Precision, cache and what happens when the context is full.

        Raises:
          SessionError: If the request is out of range, over the budget, or the system has no such memory.
        """
        params = _session_params(context_length, threads, batch_tokens, memory_budget_bytes, options)
        memory = AttarMemory()
        check(library().attar_plan, model.handle, byref(params), byref(memory))
        self._memory = MemoryUsage(memory.weight_bytes, memory.cache_bytes, memory.scratch_bytes)
        self._handle = c_void_p()
        check(library().attar_session_create, model.handle, byref(params), byref(self._handle))
        self._model = model
        # `model` rides along, so that it outlives the session.
        self._free = weakref.finalize(self, _free_session, self._handle, model)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        context_length: int | None = None,
        threads: int | None = None,
        options: NativeOptions = DEFAULT_OPTIONS,
    ) -> Self:
        """Opens a `.gguf` file; the arguments are those of a session.

        Raises:
          SessionError: If the file cannot be run, or not with this context.
        """
        return cls(NativeModel(path), context_length=context_length, threads=threads, options=options)

    @property
    def model(self) -> NativeModel:
        return self._model

    @property
    def vocab_size(self) -> int:
        return self._model.info.n_vocab

    @property
    def context_length(self) -> int:
        return int(library().attar_session_context(self._open_handle()))

    @property
    def position(self) -> int:
        return int(library().attar_session_position(self._open_handle()))

    def prefill(self, tokens: Sequence[int]) -> Logits:
        """Appends T >= 1 tokens and returns the logits after the last, float32 [V]."""
        return self._run(library().attar_session_eval, tokens, (self.vocab_size,))

    def score(self, tokens: Sequence[int]) -> Logits:
        """Appends T >= 1 tokens and returns the logits after each, float32 [T, V]."""
        return self._run(library().attar_session_score, tokens, (len(tokens), self.vocab_size))

    def decode(self, token: int) -> Logits:
        """Appends one token and returns the logits after it, float32 [V]."""
        return self.prefill((token,))

    def rewind(self, position: int) -> None:
        """Keeps the first `position` tokens and drops the others.

        Raises:
          SessionError: If fewer tokens are held, or a local layer's ring no longer holds what is needed.
        """
        if not -(2**31) <= position < 2**31:
            raise SessionError(f"position must be between 0 and the {self.position} tokens held, got {position}")
        check(library().attar_session_rewind, self._open_handle(), position)

    def memory(self) -> MemoryUsage:
        """Bytes of the weights, of the cache and of the working memory."""
        return self._memory

    def close(self) -> None:
        """Frees cache, working memory and threads; the session cannot be used afterwards."""
        self._free()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_handle(self) -> c_void_p:
        if not self._free.alive:
            raise SessionError(f"{self._model.path}: the session is closed")
        return self._handle

    def _run(self, function: Any, tokens: Sequence[int], shape: tuple[int, ...]) -> Logits:
        handle, ids = self._open_handle(), _as_ids(tokens)
        logits = np.empty(shape, np.float32)
        check(function, handle, ids.ctypes.data_as(POINTER(c_int32)), ids.size, _floats(logits))
        return logits


def _free_session(handle: c_void_p, model: NativeModel) -> None:
    del model
    library().attar_session_free(handle)


def _as_ids(tokens: Sequence[int]) -> NDArray[np.int32]:
    """The ids as int32 [T]; the library checks them against the vocabulary."""
    ids = np.asarray(tokens, np.int64)
    if ids.ndim != 1 or not ids.size:
        raise SessionError(f"at least one token is needed, got an array of shape {ids.shape}")
    # Saturated, so that an id beyond 32 bits is still out of every vocabulary instead of wrapping into it.
    return np.clip(ids, -1, 2**31 - 1).astype(np.int32)


def _floats(array: Logits) -> Any:
    return array.ctypes.data_as(POINTER(c_float))


class NativeTokenizer:
    """The vocabulary inside a GGUF file."""

    def __init__(self, model: NativeModel) -> None:
        """Builds the tokenizer of an opened file.

        Raises:
          SessionError: If the file has no vocabulary, or one of a kind that is not known.
        """
        self._model = model
        self._handle = c_void_p()
        check(library().attar_tokenizer_create, model.handle, byref(self._handle))
        weakref.finalize(self, _free_tokenizer, self._handle, model)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Opens the tokenizer of a `.gguf` file."""
        return cls(NativeModel(path))

    @property
    def vocab_size(self) -> int:
        return self._model.info.n_vocab

    @property
    def chat_template(self) -> str | None:
        """Jinja source, or None for a model without one."""
        return self._model.metadata("tokenizer.chat_template")

    @property
    def bos_token_id(self) -> int | None:
        return _id_or_none(self._model.info.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        return _id_or_none(self._model.info.eos_token)

    @property
    def bos_text(self) -> str | None:
        return self._special_text(self.bos_token_id)

    @property
    def eos_text(self) -> str | None:
        return self._special_text(self.eos_token_id)

    def encode(self, text: str | bytes, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Ids of a text.

        Args:
          text: Text, or bytes that need not be valid UTF-8.
          add_special: Add BOS and EOS where the file asks for them.
          parse_special: Recognise control tokens such as <|im_end|> in the text.

        Raises:
          SessionError: If the vocabulary cannot express the text.
        """
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        capacity = len(data) + 8  # a token covers a byte or more, but for BOS, EOS and a leading blank
        while True:
            ids, count, error = (c_int32 * capacity)(), c_size_t(), AttarError()
            status = library().attar_tokenizer_encode(
                self._handle, data, len(data), add_special, parse_special, ids, capacity, byref(count), byref(error)
            )
            if status == ATTAR_OK:
                return ids[: count.value]
            if status != ATTAR_ERROR_ARGUMENT or count.value <= capacity:
                raise SessionError(error.message.decode("utf-8", "replace"))
            capacity = count.value

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self._piece(i, special=not skip_special) for i in ids).decode("utf-8", "replace")

    def token_bytes(self, token: int, /) -> bytes:
        """Bytes of one token as they stand in text; none for control tokens.

        Raises:
          SessionError: If the id is outside the vocabulary.
        """
        return self._piece(token, special=False)

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return bool(library().attar_tokenizer_is_end(self._handle, token))

    def _special_text(self, token: int | None) -> str | None:
        return None if token is None else self._piece(token, special=True).decode("utf-8", "replace")

    def _piece(self, token: int, *, special: bool) -> bytes:
        length = c_size_t()
        in_range = 0 <= token < 2**31
        address = library().attar_tokenizer_piece(self._handle, token, special, byref(length)) if in_range else None
        piece = text_at(address, length.value)
        if piece is None:
            raise SessionError(f"token ids must be 0 to {self.vocab_size - 1}, got {token}")
        return piece


def _free_tokenizer(handle: c_void_p, model: NativeModel) -> None:
    del model
    library().attar_tokenizer_free(handle)


def _id_or_none(token: int) -> int | None:
    return None if token < 0 else token


class NativeSampler:
    """Draws tokens from logits; the same seed draws the same tokens on every platform."""

    def __init__(
        self,
        vocab_size: int,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Sets up a sampler over logits [vocab_size].

        Args:
          temperature: Divides the logits; 0 always takes the largest.
          top_k: Keep this many of the likeliest; 0 keeps all.
          top_p: Of those, keep the likeliest that make up this much of their probability.
          min_p: Of those, drop any less likely than this times the likeliest.
          seed: Any integer; its low 64 bits count.

        Raises:
          SessionError: If a setting is out of range.
        """
        self._vocab_size = vocab_size
        self._handle = c_void_p()
        params = AttarSamplerParams(temperature, top_k, top_p, min_p)
        check(library().attar_sampler_create, vocab_size, byref(params), seed % 2**64, byref(self._handle))
        weakref.finalize(self, library().attar_sampler_free, self._handle)

    def draw(self, logits: Logits) -> int:
        """A token drawn from logits, float32 [vocab_size].

        Raises:
          SessionError: If the logits have another shape.
        """
        row = np.ascontiguousarray(logits, np.float32)
        if row.shape != (self._vocab_size,):
            raise SessionError(f"logits must have shape ({self._vocab_size},), got {row.shape}")
        return int(library().attar_sampler_draw(self._handle, _floats(row)))
