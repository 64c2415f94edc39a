"""Quantisation-aware training: the student computes with the weights that its quantised file will hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
from jaxtyping import Array

from attar.distill.parametrization import Parametrization, Split
from attar.engine.config import ModelConfig
from attar.engine.gguf_names import hf_shapes
from attar.engine.transformer import Params
from attar.quantize.policy import Scheme, assign_types
from attar.quantize.qat import fake_quantize


@dataclass(frozen=True)
class FakeQuantized:
    """Another parametrisation's weights, rounded as `attar quantize` rounds them; gradients pass straight through.

    The float weights before rounding are trained and saved: rounding them again gives what training saw.

    Attributes:
      inner: Gives the weights to round: the trained ones themselves, or those with an adapter merged.
      types: Format of each weight by its name in Params, those of the layers being stacked.
    """

    inner: Parametrization
    types: tuple[tuple[str, str], ...]

    def split(self, weights: Params, key: Array) -> Split:
        """That of `inner`."""
        return self.inner.split(weights, key)

    def effective(self, trained: Params, frozen: Params | None) -> Params:
        """The rounded weights."""
        rounded: Params = _round(self.inner.effective(trained, frozen), self.types)
        return rounded

    def saved(self, trained: Params, frozen: Params | None) -> Params:
        """The weights before rounding."""
        return self.inner.saved(trained, frozen)


def fake_quantized(inner: Parametrization, config: ModelConfig, scheme: Scheme) -> FakeQuantized:
    """Rounds each weight of a model to the format that a scheme assigns to its tensor."""
    plan = assign_types(hf_shapes(config), scheme)
    types = {name.split(".")[-2]: assignment.type_name for name, assignment in plan.items()}  # equal in all layers
    return FakeQuantized(inner, tuple(sorted(types.items())))


@partial(jax.jit, static_argnames="types")
def _round(weights: Params, types: tuple[tuple[str, str], ...]) -> Params:
    by_name: Mapping[str, str] = dict(types)
    return jax.tree_util.tree_map_with_path(  # type: ignore[no-any-return]  # a tree of Params' structure
        lambda path, leaf: fake_quantize(by_name[path[-1].key], leaf), weights
    )
