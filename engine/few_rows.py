"""The product of a few rows with a matrix, by a kernel of attar's own (`csrc`) that XLA calls on a CPU.

A step of decoding multiplies one row of each sequence with the table of logits. XLA packs the matrix for its product
first, which takes several times as long as reading it; here it is read once, where it lies.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attar.engine.xla_library import FEW_ROWS, is_registered, suits_one_cpu

MAX_ROWS = 16
"""Beyond, XLA's own product is about as fast."""


def suits(rows: int, dtype: jnp.dtype) -> bool:
    """Whether products of so many rows are better taken here: on one CPU, in float32, with the kernel installed."""
    return rows <= MAX_ROWS and dtype == jnp.float32 and suits_one_cpu()


def product(x: Float[Array, "*batch in"], matrix: Float[Array, "out in"]) -> Float[Array, "*batch out"]:
    """x times the transpose of the matrix; not differentiable.

    A row gives the same bits alone and among others, on any number of threads.

    Raises:
      RuntimeError: If the kernel cannot be had.
      ValueError: If the sizes differ.
    """
    if not is_registered():
        raise RuntimeError("the kernel for few rows is not installed, or this is no CPU; ask `suits` first")
    size_out, size_in = matrix.shape
    if x.shape[-1] != size_in:
        raise ValueError(f"x must have rows of {size_in} for a matrix {size_out} by {size_in}, got {x.shape[-1]}")
    rows = x.reshape(-1, size_in)
    result = jax.ShapeDtypeStruct((rows.shape[0], size_out), jnp.float32)  # type: ignore[no-untyped-call]  # jax leaves it without types
    computed: Array = jax.ffi.ffi_call(FEW_ROWS, result)(rows, matrix)
    return computed.reshape(*x.shape[:-1], size_out)
