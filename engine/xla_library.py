"""The library of functions that XLA calls on a CPU (`csrc`)."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

import jax

from attar.engine.sharding import mesh_shape

FEW_ROWS = "attar_few_rows"
DECODE_LAYERS = "attar_decode_layers"


def suits_one_cpu() -> bool:
    """Whether the functions can be called here: on one CPU, with the library installed."""
    return mesh_shape().num_devices == 1 and is_registered()


@functools.cache
def is_registered() -> bool:
    """Makes the functions known to XLA; False where they are not installed, or arrays are not on a CPU."""
    import attar.engine

    if jax.default_backend() != "cpu":
        return False
    name = {"darwin": "libattar_xla.dylib", "win32": "attar_xla.dll"}.get(sys.platform, "libattar_xla.so")
    # An editable install has two folders: the source, and the one in site-packages where the library lies.
    path = next((Path(folder) / name for folder in attar.engine.__path__ if (Path(folder) / name).is_file()), None)
    if path is None:
        return False
    library = ctypes.CDLL(str(path))
    for target in (FEW_ROWS, DECODE_LAYERS):
        capsule = jax.ffi.pycapsule(getattr(library, target))  # type: ignore[no-untyped-call]  # jax leaves it without types
        jax.ffi.register_ffi_target(target, capsule, platform="cpu")
    return True
