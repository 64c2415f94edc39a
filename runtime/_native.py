"""The C library as ctypes sees it: every structure and signature of `include/attar.h`, and nothing else.

A test compares this file with the header, so a change there that is not made here fails.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Iterable
from ctypes import POINTER, c_bool, c_char, c_char_p, c_float, c_int, c_int32, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from attar.runtime.session import SessionError

# --- attar_status ---------------------------------------------------------------------------------------------

ATTAR_OK = 0
ATTAR_ERROR_IO = 1
ATTAR_ERROR_FORMAT = 2
ATTAR_ERROR_MODEL = 3
ATTAR_ERROR_ARGUMENT = 4
ATTAR_ERROR_MEMORY = 5
ATTAR_ERROR_CONTEXT = 6

# --- structures -----------------------------------------------------------------------------------------------


class AttarError(ctypes.Structure):
    """attar_error: the caller's message buffer."""

    status: int
    message: bytes
    _fields_ = (("status", c_int), ("message", c_char * 512))


class AttarModelInfo(ctypes.Structure):
    """attar_model_info: hyperparameters, lengths in tokens."""

    architecture: bytes
    n_vocab: int
    n_embd: int
    n_ff: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ctx_train: int
    sliding_window: int
    n_local_layers: int
    file_bytes: int
    weight_bytes: int
    n_parameters: int
    bos_token: int
    eos_token: int
    eot_token: int
    _fields_ = (
        ("architecture", c_char * 32),
        ("n_vocab", c_int32),
        ("n_embd", c_int32),
        ("n_ff", c_int32),
        ("n_layers", c_int32),
        ("n_heads", c_int32),
        ("n_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("n_ctx_train", c_int32),
        ("sliding_window", c_int32),
        ("n_local_layers", c_int32),
        ("file_bytes", c_uint64),
        ("weight_bytes", c_uint64),
        ("n_parameters", c_uint64),
        ("bos_token", c_int32),
        ("eos_token", c_int32),
        ("eot_token", c_int32),
    )


class AttarSessionParams(ctypes.Structure):
    """attar_session_params: 0 takes the default of each."""

    n_ctx: int
    n_threads: int
    n_batch: int
    activation_bits: int
    kv_type: int
    overflow: int
    n_keep: int
    memory_budget: int
    _fields_ = (
        ("n_ctx", c_int32),
        ("n_threads", c_int32),
        ("n_batch", c_int32),
        ("activation_bits", c_int32),
        ("kv_type", c_int32),
        ("overflow", c_int32),
        ("n_keep", c_int32),
        ("memory_budget", c_uint64),
    )


class AttarMemory(ctypes.Structure):
    """attar_memory: bytes."""

    weight_bytes: int
    cache_bytes: int
    scratch_bytes: int
    _fields_ = (("weight_bytes", c_uint64), ("cache_bytes", c_uint64), ("scratch_bytes", c_uint64))


class AttarSamplerParams(ctypes.Structure):
    """attar_sampler_params."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    _fields_ = (("temperature", c_float), ("top_k", c_int32), ("top_p", c_float), ("min_p", c_float))


# --- functions: name -> (result, arguments) ---------------------------------------------------------------------

# Handles are opaque, so every pointer to one is a void pointer; a call that makes one takes a pointer to it.
_HANDLE, _HANDLE_OUT = c_void_p, POINTER(c_void_p)
_ERROR = POINTER(AttarError)
_FLOATS, _IDS, _SIZE = POINTER(c_float), POINTER(c_int32), POINTER(c_size_t)
# Text that is not NUL-terminated must not become bytes by itself, so it too is a bare address.
_TEXT = c_void_p

SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "attar_model_open": (c_int, (c_char_p, _HANDLE_OUT, _ERROR)),
    "attar_model_free": (None, (_HANDLE,)),
    "attar_model_get_info": (None, (_HANDLE, POINTER(AttarModelInfo))),
    "attar_model_metadata": (_TEXT, (_HANDLE, c_char_p, _SIZE)),
    "attar_plan": (c_int, (_HANDLE, POINTER(AttarSessionParams), POINTER(AttarMemory), _ERROR)),
    "attar_session_create": (c_int, (_HANDLE, POINTER(AttarSessionParams), _HANDLE_OUT, _ERROR)),
    "attar_session_free": (None, (_HANDLE,)),
    "attar_session_position": (c_int32, (_HANDLE,)),
    "attar_session_context": (c_int32, (_HANDLE,)),
    "attar_session_eval": (c_int, (_HANDLE, _IDS, c_size_t, _FLOATS, _ERROR)),
    "attar_session_score": (c_int, (_HANDLE, _IDS, c_size_t, _FLOATS, _ERROR)),
    "attar_session_rewind": (c_int, (_HANDLE, c_int32, _ERROR)),
    "attar_sampler_create": (c_int, (c_int32, POINTER(AttarSamplerParams), c_uint64, _HANDLE_OUT, _ERROR)),
    "attar_sampler_free": (None, (_HANDLE,)),
    "attar_sampler_draw": (c_int32, (_HANDLE, _FLOATS)),
    "attar_tokenizer_create": (c_int, (_HANDLE, _HANDLE_OUT, _ERROR)),
    "attar_tokenizer_free": (None, (_HANDLE,)),
    "attar_tokenizer_encode": (
        c_int,
        (_HANDLE, c_char_p, c_size_t, c_bool, c_bool, _IDS, c_size_t, _SIZE, _ERROR),
    ),
    "attar_tokenizer_piece": (_TEXT, (_HANDLE, c_int32, c_bool, _SIZE)),
    "attar_tokenizer_is_end": (c_bool, (_HANDLE, c_int32)),
    "attar_version": (c_char_p, ()),
    "attar_kernels_name": (c_char_p, ()),
}


def library_name() -> str:
    """File name of the shared library on this platform."""
    return {"darwin": "libattar.dylib", "win32": "attar.dll"}.get(sys.platform, "libattar.so")


def find_library(folders: Iterable[str]) -> Path:
    """The shared library in the first of the package's folders that has it.

    An editable install has two: the source folder, and the one in site-packages where the library lies.

    Raises:
      SessionError: If none has it, as when the package is imported from a source tree that was never installed.
    """
    looked = [Path(folder) for folder in folders]
    for folder in looked:
        if (folder / library_name()).is_file():
            return folder / library_name()
    places = ", ".join(str(folder) for folder in looked)
    raise SessionError(f"{library_name()} is not in {places}; build it by installing attar: pip install -e .")


@functools.cache
def library() -> ctypes.CDLL:
    """The C library with every signature set, loaded once.

    Raises:
      SessionError: If it is missing or does not load.
    """
    import attar.runtime

    path = find_library(attar.runtime.__path__)
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise SessionError(f"{path}: does not load: {error}; reinstall attar on this machine") from error
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(loaded, name, None)
        if function is None:
            raise SessionError(f"{path}: has no {name}, so it is of another version; reinstall attar")
        function.restype, function.argtypes = result, arguments
    return loaded


def check(function: Callable[..., int], *arguments: Any) -> None:
    """Calls a function that returns attar_status, giving it an error buffer as last argument.

    Raises:
      SessionError: With the library's one-line message, if the status is not ATTAR_OK.
    """
    error = AttarError()
    if function(*arguments, ctypes.byref(error)) != ATTAR_OK:
        raise SessionError(error.message.decode("utf-8", "replace"))


def text_at(address: int | None, length: int) -> bytes | None:
    """Copies `length` bytes of text that a call returned; None for NULL."""
    return None if address is None else ctypes.string_at(address, length)
