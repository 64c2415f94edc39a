"""How the weights that a student computes with come from the weights that are trained.

The step differentiates with respect to the effective weights and pulls the gradient back, so that a parametrisation
is evaluated once a step whatever the accumulation, and the one that trains the weights themselves costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from jaxtyping import Array

from attar.engine.transformer import Params


class Split(NamedTuple):
    """A model's weights as a parametrisation holds them.

    Attributes:
      trained: What the optimizer changes and checkpoints keep.
      frozen: What never changes; None where nothing is frozen.
    """

    trained: Params
    frozen: Params | None


class Parametrization(Protocol):
    """Between trained weights and a model; hashable, and pure in all that it does."""

    def split(self, weights: Params, key: Array) -> Split:
        """The state in which training starts: `effective` of it computes what `weights` do, up to rounding.

        Args:
          weights: Initial weights of the student.
          key: JAX random key of whatever is drawn.
        """
        ...

    def effective(self, trained: Params, frozen: Params | None) -> Params:
        """The weights that the model computes with, in training, in sampling and in evaluation; differentiable."""
        ...

    def saved(self, trained: Params, frozen: Params | None) -> Params:
        """The float weights that become the student's folder."""
        ...


@dataclass(frozen=True)
class Direct:
    """The weights themselves are trained."""

    def split(self, weights: Params, key: Array) -> Split:
        """All of them."""
        return Split(weights, None)

    def effective(self, trained: Params, frozen: Params | None) -> Params:
        """The trained weights as they are."""
        return trained

    def saved(self, trained: Params, frozen: Params | None) -> Params:
        """The trained weights as they are."""
        return trained
