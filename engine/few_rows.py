"""The product of a few rows with a matrix, by a kernel of attar's own (`csrc`) that XLA calls on a CPU.

A step of decoding multiplies one row of each sequence with every weight. XLA packs the matrix for its product first,
which takes several times as long as reading it, and a scan over stacked layers hands each layer's matrices over as
copies. Here the matrix is read once, where it lies.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from attar.engine.sharding import mesh_shape

MAX_ROWS = 16
"""Beyond, XLA's own product is about as fast."""
_TARGET = "attar_few_rows"


class StackedMatrix(NamedTuple):
    """One of several matrices, where it lies; a pytree.

    Attributes:
      stacked: float32.
      layer: int32, which.
    """

    stacked: Float[Array, "L out in"]
    layer: Int[Array, ""]


def suits(rows: int, dtype: jnp.dtype) -> bool:
    """Whether products of so many rows are better taken here: on one CPU, in float32, with the kernel installed."""
    return rows <= MAX_ROWS and dtype == jnp.float32 and mesh_shape().num_devices == 1 and _is_registered()


def product(x: Float[Array, "*batch in"], matrix: StackedMatrix) -> Float[Array, "*batch out"]:
    """x times the transpose of the matrix; not differentiable.

    A row gives the same bits alone and among others, on any number of threads.

    Raises:
      RuntimeError: If the kernel cannot be had.
      ValueError: If the sizes differ.
    """
    if not _is_registered():
        raise RuntimeError("the kernel for few rows is not installed, or this is no CPU; ask `suits` first")
    size_out, size_in = matrix.stacked.shape[1:]
    if x.shape[-1] != size_in:
        raise ValueError(f"x must have rows of {size_in} for a matrix {size_out} by {size_in}, got {x.shape[-1]}")
    rows = x.reshape(-1, size_in)
    result = jax.ShapeDtypeStruct((rows.shape[0], size_out), jnp.float32)  # type: ignore[no-untyped-call]  # jax leaves it without types
    computed: Array = jax.ffi.ffi_call(_TARGET, result)(rows, matrix.stacked, jnp.asarray(matrix.layer, jnp.int32))
    return computed.reshape(*x.shape[:-1], size_out)


@functools.cache
def _is_registered() -> bool:
    """Makes the kernel known to XLA; False where it is not installed, or arrays are not on a CPU."""
    import attar.engine

    if jax.default_backend() != "cpu":
        return False
    name = {"darwin": "libattar_xla.dylib", "win32": "attar_xla.dll"}.get(sys.platform, "libattar_xla.so")
    # An editable install has two folders: the source, and the one in site-packages where the library lies.
    path = next((Path(folder) / name for folder in attar.engine.__path__ if (Path(folder) / name).is_file()), None)
    if path is None:
        return False
    function = ctypes.CDLL(str(path)).attar_few_rows
    capsule = jax.ffi.pycapsule(function)  # type: ignore[no-untyped-call]  # jax leaves it without types
    jax.ffi.register_ffi_target(_TARGET, capsule, platform="cpu")
    return True
