"""The parts of a decoder layer without memory: norms, projections, the gated MLP, caps and embeddings.

Weights are `[out, in]`, as in Hugging Face checkpoints, and are contracted on their last axis: no transposed copy.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from attar.engine.config import Activation

# One layer's weights by Hugging Face name, or all layers' stacked on a leading axis L. Norms are always arrays.
Layer = dict[str, Any]


def linear(x: Float[Array, "*batch in"], weight: Float[Array, "out in"]) -> Float[Array, "*batch out"]:
    """x times the transpose of `weight`, without bias."""
    return _product(x, weight, jnp.result_type(x, weight))


def _dot(x: Array, weight: Array, dtype: jnp.dtype) -> Array:
    """x [..., in] times the transpose of weight [out, in], summed in `dtype`: [..., out]."""
    return jax.lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=dtype)


_product = jax.custom_vjp(_dot, nondiff_argnums=(2,))


def _product_forward(x: Array, weight: Array, dtype: jnp.dtype) -> tuple[Array, tuple[Array, Array]]:
    """The bare product, which policies of rematerialisation know as one; they would not look into `_product`."""
    return _dot(x, weight, dtype), (x, weight)


def _product_backward(dtype: jnp.dtype, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    """The weight's gradient is the product that transposes the narrower of x and the output's gradient.

    A CPU writes the transposed operand out, with the elementwise work that led to it, column by column: where the
    output is four times as wide as x, as in an MLP, that took as long as the product.
    """
    x, weight = kept
    dot = partial(jax.lax.dot_general, preferred_element_type=dtype)
    batch = tuple(range(x.ndim - 1))
    d_x = dot(gradient, weight, (((x.ndim - 1,), (0,)), ((), ())))  # [..., in]
    if weight.shape[0] > weight.shape[1]:
        d_weight = transposed(dot(x, gradient, ((batch, batch), ((), ()))))  # [in, out] -> [out, in]
    else:
        d_weight = dot(gradient, x, ((batch, batch), ((), ())))  # [out, in]
    return d_x.astype(x.dtype), d_weight.astype(weight.dtype)


_product.defvjp(_product_forward, _product_backward)


def transposed(product: Float[Array, "m n"]) -> Float[Array, "n m"]:
    """The transpose of a product, which XLA would else fold into a product of another, slower layout."""
    kept: Array = jax.lax.optimization_barrier(product)  # type: ignore[no-untyped-call]  # jax leaves it without types
    return kept.T


def rms_norm(
    x: Float[Array, "*batch D"], weight: Float[Array, " D"], eps: float, plus_one: bool
) -> Float[Array, "*batch D"]:
    """x / sqrt(mean(x^2) + eps) * (weight, or 1 + weight), in float32, cast back to x's dtype.

    References:
      Zhang and Sennrich, 2019, arXiv:1910.07467, eq. 4. Gemma stores the deviation of its weights from 1.
    """
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)  # [..., 1]
    gain = weight.astype(jnp.float32) + (1.0 if plus_one else 0.0)  # [D]
    return (wide * inverse * gain).astype(x.dtype)


def activate(x: Float[Array, "*shape"], activation: Activation) -> Float[Array, "*shape"]:
    """SiLU, or GELU in its tanh approximation."""
    return jax.nn.silu(x) if activation == "silu" else jax.nn.gelu(x, approximate=True)


def gated_mlp(x: Float[Array, "B T D"], layer: Layer, activation: Activation) -> Float[Array, "B T D"]:
    """down(activation(gate(x)) * up(x)): SwiGLU or GeGLU.

    References:
      Shazeer, 2020, arXiv:2002.05202, eq. 6.
    """
    gate = activate(linear(x, layer["gate_proj"]), activation)  # [B, T, F]
    return linear(gate * linear(x, layer["up_proj"]), layer["down_proj"])  # [B, T, D]


def soft_cap(x: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"]:
    """cap * tanh(x / cap), which keeps |x| below cap; None leaves x."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def head_logits(
    hidden: Float[Array, "*batch D"], table: Float[Array, "V D"], cap: float | None
) -> Float[Array, "*batch V"]:
    """Logits of hidden states over the rows of a table: float32, whatever the inputs are, and soft-capped."""
    return soft_cap(table_products(hidden, table), cap)


def table_products(hidden: Float[Array, "*batch D"], table: Float[Array, "V D"]) -> Float[Array, "*batch V"]:
    """Logits before the soft cap."""
    return _product(hidden, table, jnp.dtype(jnp.float32))


def embed(table: Float[Array, "V D"], tokens: Int[Array, "B T"], scaled: bool) -> Float[Array, "B T D"]:
    """Rows of the token table, times sqrt(D) where the family scales its embeddings.

    The factor is cast to the table's dtype before the product, as Gemma was trained: in bfloat16, sqrt(2304) is 48
    but sqrt(3584) = 59.87 becomes 59.75.
    """
    x = table[tokens]  # [B, T, D]
    return x * jnp.asarray(table.shape[1] ** 0.5, dtype=table.dtype) if scaled else x
