"""Gives back to the system what a compiler's run leaves behind.

XLA's compiler allocates and frees some hundred megabytes for a training step. glibc keeps them for what comes next,
but the step's buffers are too large to fit between what is still in use: without help, the compiler's leavings and the
step's memory add up to the process's peak.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"
_LONG_SECONDS = 0.5  # a shorter compilation leaves little, and giving back takes some milliseconds


@cache
def give_back_after_compiling() -> bool:
    """From now on, frees a compiler's memory before what it made runs; whether the system's allocator can do that.

    Only glibc has the call. A second call changes nothing.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is None:
        return False

    def listen(event: str, duration_secs: float, **_: Any) -> None:  # named as jax has it
        if event == _COMPILED and duration_secs > _LONG_SECONDS:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return True
