"""Settings of every test: one compilation cache a worker, so that tests and the processes they start share programs."""

import os
from pathlib import Path

_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
_CACHE = Path(__file__).resolve().parents[1] / ".pytest_cache" / f"xla-{_WORKER}"

# Set before jax is imported; child processes inherit it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
