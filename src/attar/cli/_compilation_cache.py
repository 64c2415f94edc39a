"""Keeps what XLA compiled for the next command: distilling, evaluating and exporting share many programs."""

from __future__ import annotations

from typing import Any

import jax

from attar.runtime.hub import cache_folder


def use_compilation_cache() -> None:
    """Stores compiled programs under the cache folder, unless the user's JAX settings name a place already."""
    settings: Any = jax.config  # its attributes are made at run time, so type checkers know none
    if settings.jax_compilation_cache_dir is None:
        settings.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        settings.update("jax_persistent_cache_min_compile_time_secs", 0.5)
