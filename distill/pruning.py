"""Initial students cut from a teacher: the layers, heads, neurons and channels that contribute most on the data.

References:
  Muralidharan et al., 2024 (Minitron), arXiv:2407.14679; Men et al., 2024 (ShortGPT), arXiv:2403.03853; Gromov et al.,
  2024, arXiv:2403.17887.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from attar.distill.batches import choose_bounds, round_up
from attar.distill.data import Example
from attar.distill.importance import (
    CalibrationRows,
    Importance,
    measure_importance,
    measure_influence,
    measure_norm_ratios,
)
from attar.engine.config import ModelConfig
from attar.engine.surgery import take_layers
from attar.engine.transformer import Params
from attar.engine.width_surgery import Indices, keep_channels, keep_heads, keep_neurons

# Rows that calibration works on at a time.
_CALIBRATION_ROWS = 8


@dataclass(frozen=True)
class PruneTarget:
    """What is left of a teacher, in Hugging Face's names; None keeps what there is."""

    num_hidden_layers: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None

    def __bool__(self) -> bool:
        """Whether anything is to be cut."""
        return any(size is not None for size in asdict(self).values())


class Pruned(NamedTuple):
    """A student cut from its teacher.

    Attributes:
      layers: Of the teacher's layers, those that were kept.
    """

    config: ModelConfig
    params: Params
    layers: tuple[int, ...]


def pruned_shape(teacher: ModelConfig, target: PruneTarget) -> ModelConfig:
    """The student's shape; its layers' attention kinds are the teacher's first ones until layers are chosen.

    Raises:
      ValueError: If a size is below 1 or above the teacher's, or heads do not divide into groups.
    """
    for name, size in asdict(target).items():
        if size is not None and not 1 <= size <= getattr(teacher, name):
            raise ValueError(f"{name} must lie between 1 and the teacher's {getattr(teacher, name)}, got {size}")
    kv_heads = target.num_key_value_heads or teacher.num_key_value_heads
    heads = target.num_attention_heads or kv_heads * teacher.num_query_groups
    if heads % kv_heads or heads // kv_heads > teacher.num_query_groups:
        raise ValueError(
            f"num_attention_heads must be a multiple of the {kv_heads} KV heads that are kept, at most "
            f"{teacher.num_query_groups} for each, got {heads}"
        )
    layers = target.num_hidden_layers or teacher.num_hidden_layers
    return teacher.replace(
        num_hidden_layers=layers,
        layer_types=teacher.layer_types[:layers],
        hidden_size=target.hidden_size or teacher.hidden_size,
        intermediate_size=target.intermediate_size or teacher.intermediate_size,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )


def prune(config: ModelConfig, params: Params, target: PruneTarget, batches: Sequence[CalibrationRows]) -> Pruned:
    """Cuts a model to a shape: layers first, then, by what the layers left contribute, the width.

    Args:
      config: Of the teacher.
      params: Its weights.
      target: What to keep.
      batches: Text that shows what contributes, as from `calibration_batches`.

    Raises:
      ValueError: As `pruned_shape`.
    """
    shape = pruned_shape(config, target)
    layers = choose_layers(config, params, shape.num_hidden_layers, batches)
    config, params = take_layers(config, params, layers)
    if shape.replace(layer_types=config.layer_types) == config:
        return Pruned(config, params, layers)
    scores = measure_importance(params, config, batches)
    if shape.hidden_size < config.hidden_size:
        channels = largest(scores.channels, shape.hidden_size)
        ratios = measure_norm_ratios(params, config, channels, batches)
        config, params = keep_channels(config, params, channels, *ratios)
    config, params = keep_neurons(config, params, largest(scores.neurons, shape.intermediate_size))
    config, params = keep_heads(config, params, *choose_heads(scores, config, shape))
    return Pruned(config, params, layers)


def choose_layers(
    config: ModelConfig, params: Params, keep: int, batches: Sequence[CalibrationRows]
) -> tuple[int, ...]:
    """Layers left when those in a row have been taken out that change the residual stream least together.

    A cut in one place disturbs the others less than cuts in many, even of layers that each have less influence.
    """
    total = config.num_hidden_layers
    if keep == total:
        return tuple(range(total))
    first = int(np.argmin(measure_influence(params, config, total - keep, batches)))
    return (*range(first), *range(first + total - keep, total))


def choose_heads(scores: Importance, config: ModelConfig, shape: ModelConfig) -> tuple[Indices, Indices]:
    """KV heads [L, K'] by what their query heads contribute together, and the best of those query heads [L, K', G']."""
    L, K, G = len(scores.heads), config.num_key_value_heads, config.num_query_groups
    grouped = scores.heads.reshape(L, K, G)
    kv_heads = largest(grouped.sum(-1), shape.num_key_value_heads)  # [L, K']
    kept = np.take_along_axis(grouped, kv_heads[..., None], axis=1)  # [L, K', G]
    return kv_heads, kv_heads[..., None] * G + largest(kept, shape.num_query_groups)


def largest(scores: Any, count: int) -> Indices:
    """Indices of the `count` largest along the last axis, in their own order; of equals the first."""
    order = np.argsort(-np.asarray(scores), axis=-1, kind="stable")[..., :count]
    return np.sort(order, axis=-1)


def calibration_batches(examples: Sequence[Example], count: int, seed: int) -> list[CalibrationRows]:
    """Prompt and completion of examples drawn by the seed, padded on the right, in batches of two lengths."""
    chosen = np.random.default_rng(seed).permutation(len(examples))[:count]
    texts = sorted((np.concatenate([examples[i].prompt, examples[i].completion]) for i in chosen), key=len)
    bounds = choose_bounds([len(text) for text in texts], 2)
    batches = []
    for start in range(0, len(texts), _CALIBRATION_ROWS):
        group = texts[start : start + _CALIBRATION_ROWS]
        tokens = np.zeros((len(group), round_up(len(group[-1]), bounds)), np.int32)
        real = np.zeros(tokens.shape, np.bool_)
        for row, text in enumerate(group):
            tokens[row, : len(text)], real[row, : len(text)] = text, True
        batches.append((tokens, real))
    return batches
