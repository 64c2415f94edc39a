"""Smaller models cut from larger ones: initial weights of a student that is a thinner copy of its teacher."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from attar.engine.config import ModelConfig
from attar.engine.transformer import Params


def take_layers(config: ModelConfig, params: Params, layers: Sequence[int]) -> tuple[ModelConfig, Params]:
    """Keeps the named layers, in the order given, with embeddings, final norm and head.

    Each layer keeps its attention kind, because its weights were trained for that window and RoPE base.

    Args:
      layers: Indices into the teacher's layers, at least one; an index may be repeated.

    Raises:
      ValueError: If no layer is named or an index lies outside the model.
    """
    wrong = [i for i in layers if not 0 <= i < config.num_hidden_layers]
    if not layers or wrong:
        raise ValueError(
            f"layers must name at least one layer from 0 to {config.num_hidden_layers - 1}, got {list(layers)}"
        )
    chosen = np.asarray(layers)
    kinds = tuple(config.layer_types[i] for i in layers)
    shorter = config.replace(num_hidden_layers=len(layers), layer_types=kinds)
    return shorter, {**params, "layers": jax.tree.map(lambda w: w[chosen], params["layers"])}


def spread_layers(num_layers: int, keep: int) -> list[int]:
    """`keep` layer indices spread evenly over a model, first and last included (the first alone if keep is 1).

    Raises:
      ValueError: If keep is not between 1 and num_layers.
    """
    if not 1 <= keep <= num_layers:
        raise ValueError(f"keep must lie between 1 and num_layers, got {keep} and {num_layers}")
    return [round(i * (num_layers - 1) / max(keep - 1, 1)) for i in range(keep)]
