"""Floating-point operations of a function as XLA counts them, with the bodies of its loops as often as they run.

XLA's cost analysis counts the body of a loop once, which for a decoder of 26 scanned layers leaves out most of the
work. The loops of a traced function are known with their lengths, so the count of each body is taken by itself and
put in that many times:

    total(f) = xla(f) + Σ over the loops of f  (trips · total(body) - xla(body))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun


def count_flops(function: Callable[..., Any], *arguments: Any, while_trips: int = 1) -> float:
    """Operations of one call, over all devices; nothing is run or allocated.

    Args:
      function: Traceable by JAX.
      arguments: Arrays, or their shapes and dtypes.
      while_trips: Turns of each loop whose length is not known beforehand.
    """
    return _total(jax.make_jaxpr(function)(*arguments), while_trips)


def _total(closed: ClosedJaxpr, while_trips: int) -> float:
    total = _xla_flops(closed)
    for trips, body in _loops(closed.jaxpr, while_trips):
        total += trips * _total(body, while_trips) - _xla_flops(body)
    return total


def _xla_flops(closed: ClosedJaxpr) -> float:
    analysis = jax.jit(jaxpr_as_fun(closed)).lower(*closed.in_avals).cost_analysis()
    return float((analysis or {}).get("flops", 0.0))


def _loops(jaxpr: Jaxpr, while_trips: int) -> Iterator[tuple[int, ClosedJaxpr]]:
    """Loops that stand in a function itself, or in functions that it calls; not those within loops."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation.params["length"], equation.params["jaxpr"]
        elif equation.primitive.name == "while":
            yield while_trips, equation.params["body_jaxpr"]
        else:
            for inner in _called(equation):
                yield from _loops(inner, while_trips)


def _called(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
