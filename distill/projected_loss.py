"""The loss at the end of the student, without the logits of a whole batch in memory.

Logits of one model over a vocabulary of 262,144 take 1 MB a token, and a divergence wants several arrays of that size.
Here hidden states go in: a few completion positions at a time are projected to the vocabulary, by the student and by
the teacher, and give their part of the loss and, at once, of its gradient with respect to the student's hidden states
and table. Memory does not depend on the number of tokens, nor on the vocabulary beyond the table's own gradient.
On a mesh each device goes through its own rows, and the gradients of the table are added up once, at the end.

References:
  Hsu et al., 2024, "Liger Kernel", arXiv:2410.10989, section 3.2, for the gradient taken in the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from attar.engine.layers import soft_cap, table_products, transposed
from attar.engine.sharding import over_row_shards

# Logits of one model that are held at once, 4 MB in float32: what one pass leaves is in the caches for the next. A
# large vocabulary takes up to four times as many, to come to CHUNK_ROWS hidden states: a product reads the whole table
# for whatever number of them.
CHUNK_LOGITS = 1 << 20
CHUNK_ROWS = 128
# Numbers of the table's gradient that are added to at once.
TABLE_PART = 1 << 22

Total = TypeVar("Total")

TokenLoss = Callable[[Array, Any, Array | None], Array]
"""(student logits [B, n, V], labels [B, n, ...], teacher logits [B, n, V] or None) -> values [B, n] in nats."""


class Head(NamedTuple):
    """What becomes logits: hidden states of the completion positions, the table, and its soft cap; a pytree.

    Attributes:
      hidden: [B, N, D], normed.
      table: [V, D].
    """

    hidden: Float[Array, "B N D"]
    table: Float[Array, "V D"]


class HeadConfig(NamedTuple):
    """What is static about the projections.

    Attributes:
      student_cap, teacher_cap: Soft caps of the logits; None where the family has none.
      vocab_size: The first so many logits count: models of one family may pad one vocabulary to different sizes.
      teacher_vocab_size: The same of the teacher, where its vocabulary is another; None is `vocab_size`.
    """

    student_cap: float | None
    teacher_cap: float | None
    vocab_size: int
    teacher_vocab_size: int | None = None


def projected_loss(
    token_loss: TokenLoss,
    config: HeadConfig,
    student: Head,
    teacher: Head | None,
    labels: PyTree,
    weights: Float[Array, "B N"],
) -> Float[Array, ""]:
    """Σ weights · token_loss over the completion positions; differentiable in the student's head alone.

    Args:
      token_loss: The method's loss; hashable, as a bound method of a frozen dataclass is.
      config: Of the projections.
      student: Its hidden states and table.
      teacher: The same of the teacher, constants; None where the loss needs no teacher.
      labels: Arrays [B, N, ...] that `token_loss` reads at each position.
      weights: Of each position. Positions of weight 0 may hold anything, and those after the last that counts cost
        nothing.
    """
    return _projected_loss(token_loss, config, student, teacher, labels, weights)


def projected_sums(
    token_values: Callable[[Array, Any, Array | None], dict[str, Array]],
    config: HeadConfig,
    student: Head,
    teacher: Head | None,
    labels: PyTree,
    counted: Bool[Array, "B N"],
) -> dict[str, Float[Array, " B"]]:
    """Sums over the counted positions of each row, by name; for evaluation.

    Args:
      token_values: As a `TokenLoss`, but for several values [B, n] by name.
      config, student, teacher, labels: As of `projected_loss`.
    """

    def row_sums(whole: _Chunk, tables: _Tables) -> tuple[None, dict[str, Array]]:
        def sums(chunk: _Chunk) -> dict[str, Array]:
            values = token_values(*_logits_and_labels(config, tables, chunk))
            return {name: jnp.sum(jnp.where(chunk.weights > 0.0, v, 0.0), axis=1) for name, v in values.items()}

        def add(total: dict[str, Array], at: Array, chunk: _Chunk) -> dict[str, Array]:
            return {name: total[name] + part for name, part in sums(chunk).items()}

        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(sums, whole))
        return None, _fold(add, start, config, whole)

    by_row: dict[str, Array]
    _, by_row = over_row_shards(row_sums, *_rows_and_tables(student, teacher, labels, counted.astype(jnp.float32)))
    return by_row


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _projected_loss(
    token_loss: TokenLoss, config: HeadConfig, student: Head, teacher: Head | None, labels: PyTree, weights: Array
) -> Array:
    def total(whole: _Chunk, tables: _Tables) -> tuple[Array, None]:
        def add(loss: Array, at: Array, chunk: _Chunk) -> Array:
            return loss + _chunk_loss(token_loss, config, tables, chunk)

        return _fold(add, jnp.zeros(()), config, whole), None

    loss: Array
    loss, _ = over_row_shards(total, *_rows_and_tables(student, teacher, labels, weights))
    return loss


def _forward(
    token_loss: TokenLoss, config: HeadConfig, student: Head, teacher: Head | None, labels: PyTree, weights: Array
) -> tuple[Array, Head]:
    """The loss and its gradient, so that the backward pass needs no logits."""

    def gradients(whole: _Chunk, tables: _Tables) -> tuple[tuple[Array, Array], Array]:
        def add(total: tuple[Array, Head], at: Array, chunk: _Chunk) -> tuple[Array, Head]:
            loss, gradient = total

            products, pull_back = jax.vjp(lambda h: table_products(h, tables.student), chunk.student)  # [B, n, V]
            products = _apart(products)
            part, d_products = jax.value_and_grad(partial(_products_loss, token_loss, config, tables, chunk))(products)
            (d_hidden,) = pull_back(d_products)
            before = jax.lax.dynamic_slice_in_dim(gradient.hidden, at, d_hidden.shape[1], axis=1)  # of an overlap
            hidden = jax.lax.dynamic_update_slice_in_dim(gradient.hidden, before + d_hidden, at, axis=1)
            return loss + part, Head(hidden, _add_outer(gradient.table, d_products, chunk.student))

        zeros = Head(jnp.zeros_like(whole.student), jnp.zeros(tables.student.shape, jnp.float32))
        loss, gradient = _fold(add, (jnp.zeros(()), zeros), config, whole)
        return (loss, gradient.table), gradient.hidden

    (loss, d_table), d_hidden = over_row_shards(gradients, *_rows_and_tables(student, teacher, labels, weights))
    return loss, Head(d_hidden, d_table)


def _backward(
    token_loss: TokenLoss, config: HeadConfig, gradient: Head, cotangent: Array
) -> tuple[Head, None, None, None]:
    dtype = gradient.hidden.dtype  # of the student's computation, its table included
    return jax.tree.map(lambda leaf: (cotangent * leaf).astype(dtype), gradient), None, None, None


_projected_loss.defvjp(_forward, _backward)


class _Chunk(NamedTuple):
    """n positions of every row: hidden states of both models, labels and weights."""

    student: Array  # [B, n, D]
    teacher: Array | None
    labels: PyTree
    weights: Array  # [B, n]


class _Tables(NamedTuple):
    """What projects the hidden states of each model, [V, D]."""

    student: Array
    teacher: Array | None


def _rows_and_tables(student: Head, teacher: Head | None, labels: PyTree, weights: Array) -> tuple[_Chunk, _Tables]:
    """What has rows, as one chunk of all positions, and what has none."""
    whole = _Chunk(student.hidden, None if teacher is None else teacher.hidden, labels, weights)
    return whole, _Tables(student.table, None if teacher is None else teacher.table)


def _add_outer(total: Array, d_products: Array, hidden: Array) -> Array:
    """total [V, D] + Σ d_products [B, n, V] ⊗ hidden [B, n, D], some rows at a time, without a second table."""
    V, D = total.shape
    rows = min(V, max(1, TABLE_PART // D))

    def add(i: Array, total: Array) -> Array:
        begin = jnp.minimum(i * rows, V - rows)  # the last part reaches back, and adds what is new
        columns = jax.lax.dynamic_slice_in_dim(d_products, begin, rows, axis=2)
        columns = jnp.where(begin + jnp.arange(rows) >= i * rows, columns, 0.0)
        contract = (((0, 1), (0, 1)), ((), ()))
        outer = jax.lax.dot_general(hidden, columns, contract, preferred_element_type=jnp.float32)  # [D, rows]
        outer = transposed(outer)
        before = jax.lax.dynamic_slice_in_dim(total, begin, rows, axis=0)
        return jax.lax.dynamic_update_slice_in_dim(total, before + outer, begin, axis=0)

    added: Array = jax.lax.fori_loop(0, -(-V // rows), add, total)
    return added


def _logits_and_labels(config: HeadConfig, tables: _Tables, chunk: _Chunk) -> tuple[Array, PyTree, Array | None]:
    """What a loss reads: logits [B, n, V] of the student, labels, logits of the teacher."""
    return _read_products(config, tables, chunk, _products(chunk.student, tables.student))


def _read_products(
    config: HeadConfig, tables: _Tables, chunk: _Chunk, products: Array
) -> tuple[Array, PyTree, Array | None]:
    """The same from the products [B, n, V] of the student's hidden states with its table."""
    logits = soft_cap(products, config.student_cap)[..., : config.vocab_size]
    if tables.teacher is None or chunk.teacher is None:
        return logits, chunk.labels, None
    size = config.teacher_vocab_size or config.vocab_size
    teacher_logits = soft_cap(_products(chunk.teacher, tables.teacher), config.teacher_cap)[..., :size]
    return logits, chunk.labels, teacher_logits


def _products(hidden: Array, table: Array) -> Array:
    """Logits [B, n, V] before the soft cap, of constants."""
    return _apart(table_products(hidden, table))


def _apart(products: Array) -> Array:
    """The products apart from what reads them: a CPU's product that takes maxima on its way is half as fast."""
    kept: Array = jax.lax.optimization_barrier(products)  # type: ignore[no-untyped-call]  # jax leaves it without types
    return kept


def _chunk_loss(token_loss: TokenLoss, config: HeadConfig, tables: _Tables, chunk: _Chunk) -> Array:
    """Σ weights · token_loss of one chunk."""
    return _products_loss(token_loss, config, tables, chunk, _products(chunk.student, tables.student))


def _products_loss(token_loss: TokenLoss, config: HeadConfig, tables: _Tables, chunk: _Chunk, products: Array) -> Array:
    """The same from the products [B, n, V] of the student's hidden states with its table."""
    values = token_loss(*_read_products(config, tables, chunk, products))
    return jnp.sum(jnp.where(chunk.weights > 0.0, values, 0.0) * chunk.weights)


def chunk_positions(rows: int, positions: int, vocab_size: int) -> int:
    """Positions of every row that are projected at a time."""
    logits = min(max(CHUNK_LOGITS, CHUNK_ROWS * vocab_size), 4 * CHUNK_LOGITS)
    return min(positions, max(1, logits // (rows * vocab_size)))


def _fold(
    add: Callable[[Total, Array, _Chunk], Total],
    start: Total,
    config: HeadConfig,
    whole: _Chunk,
) -> Total:
    """add(total, first position, chunk) over chunks of positions, as far as any row has weights."""
    weights = whole.weights
    B, N = weights.shape
    n = chunk_positions(B, N, max(config.vocab_size, config.teacher_vocab_size or 0))
    if n == N:
        return add(start, jnp.int32(0), whole)
    counted = jnp.max(jnp.where(jnp.any(weights > 0.0, axis=0), jnp.arange(1, N + 1), 0))  # positions up to the last

    def step(state: tuple[Array, Total]) -> tuple[Array, Total]:
        i, total = state
        begin = jnp.minimum(i * n, N - n)  # the last chunk reaches back, and counts what is new
        chunk: _Chunk = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, begin, n, axis=1), whole)
        new = begin + jnp.arange(n) >= i * n
        return i + 1, add(total, begin, chunk._replace(weights=jnp.where(new, chunk.weights, 0.0)))

    _, total = jax.lax.while_loop(lambda state: state[0] * n < counted, step, (jnp.int32(0), start))
    return total
