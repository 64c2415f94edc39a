"""Keeps what XLA compiled for the next command: distilling, evaluating and exporting share many programs."""

from __future__ import annotations

import jax

from attar.runtime.hub import cache_folder


def use_compilation_cache() -> None:
    """Stores compiled programs under the cache folder, unless the user's JAX settings name a place already."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
