"""Low-rank adaptation: frozen weights W plus a trained update of rank r, merged before the model computes with them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attar.distill.parametrization import Split
from attar.engine.transformer import Params

# Projections that an adapter may sit on, in the order of a layer.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Lora:
    """W + scale · B A on the targets of every layer; all other weights stay as they are.

    ```
    trained = {"layers": {"q_proj": {"lora_A": [L, r, in], "lora_B": [L, out, r]}, ...}}
    ```

    Attributes:
      rank: r.
      alpha: Numerator of the scale, which makes learning rates carry over from one rank to another.
      targets: Names among LORA_TARGETS.
      rank_stabilized: Scale by alpha / sqrt(r) instead of alpha / r, so that updates of a high rank do not vanish.

    References:
      Hu et al., 2021, arXiv:2106.09685, section 4.1; Kalajdzievski, 2023, arXiv:2312.03732, for the other scale.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = LORA_TARGETS
    rank_stabilized: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora_rank must be at least 1, got {self.rank}")
        if not self.alpha > 0:
            raise ValueError(f"lora_alpha must be positive, got {self.alpha}")
        wrong = [name for name in self.targets if name not in LORA_TARGETS]
        if wrong or not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError(
                f"lora_targets must name projections among {', '.join(LORA_TARGETS)}, each once, "
                f"got {', '.join(self.targets) or 'none'}"
            )

    @property
    def scale(self) -> float:
        """Factor on B A."""
        return float(self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank))

    def split(self, weights: Params, key: Array) -> Split:
        """Freezes all weights; B is zero, so that training starts from them, and A is uniform within ± in^-1/2.

        The bound is that of PEFT, whose learning rates therefore carry over.
        """
        adapters = {}
        for name, one in zip(self.targets, jax.random.split(key, len(self.targets)), strict=True):
            L, out, width = weights["layers"][name].shape
            a = jax.random.uniform(one, (L, self.rank, width), minval=-(width**-0.5), maxval=width**-0.5)
            adapters[name] = {"lora_A": a, "lora_B": jnp.zeros((L, out, self.rank))}
        return Split({"layers": adapters}, weights)

    def effective(self, trained: Params, frozen: Params | None) -> Params:
        """The merged weights."""
        assert frozen is not None  # as `split` gave it
        merged = {
            name: _merge(frozen["layers"][name], adapter["lora_A"], adapter["lora_B"], self.scale)
            for name, adapter in trained["layers"].items()
        }
        return {**frozen, "layers": {**frozen["layers"], **merged}}

    def saved(self, trained: Params, frozen: Params | None) -> Params:
        """The merged weights."""
        return self.effective(trained, frozen)


@partial(jax.jit, static_argnames="scale")
def _merge(
    weight: Float[Array, "L out in"], a: Float[Array, "L r in"], b: Float[Array, "L out r"], scale: float
) -> Float[Array, "L out in"]:
    return weight + scale * jnp.einsum("lor,lri->loi", b, a)
