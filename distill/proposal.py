"""A student's shape for a budget: bytes of the exported file, milliseconds a token on the device, or both.

Decoding one token reads every weight once and the cache of all positions before it; on a phone that traffic, not
arithmetic, sets the time. So a shape's time is its bytes divided by the memory's bandwidth.

References:
  Pope et al., 2022, arXiv:2211.05102, section 2, for decoding as memory traffic. Muralidharan et al., 2024,
  arXiv:2407.14679, and Liu et al., 2024 (MobileLLM), arXiv:2402.14905, for width against depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from attar.distill.pruning import PruneTarget, pruned_shape
from attar.engine.config import ModelConfig
from attar.engine.gguf_names import hf_shapes
from attar.engine.transformer import layer_windows
from attar.quantize.policy import Scheme, assign_types

# Half of what 64-bit LPDDR5-6400 can move (6400 MT/s x 8 bytes = 51.2 GB/s): what a phone's CPU cores sustain.
PHONE_BANDWIDTH = 25.6e9

Style = Literal["balanced", "deep", "wide"]
STYLES: tuple[Style, ...] = get_args(Style)

_MULTIPLE = 32  # of sizes: the block of the formats
_SMALLEST_HIDDEN = 32
_CACHE_BYTES = 2  # of a cached value, float16


class ProposalError(ValueError):
    """A budget that no shape of the teacher's family meets, or that the teacher meets already."""


@dataclass(frozen=True)
class Budget:
    """What the student may cost; at least one of the two bounds is given.

    Attributes:
      file_bytes: Of the exported GGUF.
      seconds_per_token: Of decoding at a context of `context_tokens`.
      scheme: Types of the exported weights.
      bandwidth: Bytes a second that the device reads.
    """

    file_bytes: int | None
    seconds_per_token: float | None
    scheme: Scheme
    bandwidth: float = PHONE_BANDWIDTH
    context_tokens: int = 1024

    def __post_init__(self) -> None:
        if self.file_bytes is None and self.seconds_per_token is None:
            raise ValueError("a budget needs file_bytes, seconds_per_token or both")


class Estimate(NamedTuple):
    """What a shape costs.

    Attributes:
      weight_bytes: Read for every token: all weights, of a token table that is not the head a row only.
      cache_bytes: Of keys and values at the budget's context.
    """

    shape: ModelConfig
    file_bytes: int
    weight_bytes: int
    cache_bytes: int
    seconds_per_token: float


class Proposal(NamedTuple):
    """A shape within a budget.

    Attributes:
      style: `deep` keeps all layers and cuts the width, `wide` the reverse, `balanced` cuts both by one factor.
      target: What to prune the teacher to.
      binding: The bound that would be broken first, "size" or "time".
    """

    style: Style
    target: PruneTarget
    estimate: Estimate
    binding: Literal["size", "time"]


def propose(teacher: ModelConfig, budget: Budget, file_bytes: Callable[[ModelConfig], int]) -> list[Proposal]:
    """For each style the largest shape within the budget, where there is one.

    Args:
      file_bytes: Size of a shape's exported file, vocabulary and metadata included.

    Raises:
      ProposalError: If no shape fits, or the teacher does.
    """
    whole = estimate(teacher, budget, file_bytes)
    if _share(whole, budget)[0] <= 1.0:
        raise ProposalError(
            f"the teacher itself is within the budget: {_spell(whole)}; quantise and export it, or ask for less"
        )
    found = [proposal for style in STYLES if (proposal := _largest(teacher, budget, file_bytes, style))]
    if not found:
        smallest = estimate(pruned_shape(teacher, list(_ladder(teacher, "balanced"))[-1]), budget, file_bytes)
        raise ProposalError(
            f"no student of this teacher is within the budget; the smallest takes {_spell(smallest)}, "
            f"asked are at most {_spell_budget(budget)}"
        )
    return found


def estimate(shape: ModelConfig, budget: Budget, file_bytes: Callable[[ModelConfig], int]) -> Estimate:
    """What a shape costs under a budget's assumptions."""
    stored = {name: part.size_bytes for name, part in assign_types(hf_shapes(shape), budget.scheme).items()}
    table = stored["model.embed_tokens.weight"]
    weights = sum(stored.values()) - (0 if shape.tie_word_embeddings else table - table // shape.vocab_size)
    positions = sum(min(window, budget.context_tokens) for window in layer_windows(shape))
    cache = 2 * positions * shape.num_key_value_heads * shape.head_dim * _CACHE_BYTES
    return Estimate(shape, file_bytes(shape), weights, cache, (weights + cache) / budget.bandwidth)


def _share(cost: Estimate, budget: Budget) -> tuple[float, Literal["size", "time"]]:
    """The larger used share of the two bounds, and which one that is."""
    size = cost.file_bytes / budget.file_bytes if budget.file_bytes else 0.0
    time = cost.seconds_per_token / budget.seconds_per_token if budget.seconds_per_token else 0.0
    return (size, "size") if size >= time else (time, "time")


def _largest(
    teacher: ModelConfig, budget: Budget, file_bytes: Callable[[ModelConfig], int], style: Style
) -> Proposal | None:
    """The first shape of a ladder that fits, its MLP widened while that fits."""

    def used(target: PruneTarget) -> float:
        return _share(estimate(pruned_shape(teacher, target), budget, file_bytes), budget)[0]

    target = next((target for target in _ladder(teacher, style) if used(target) <= 1.0), None)
    if target is None:
        return None
    for wider in _wider(teacher, target):
        if used(wider) > 1.0:
            break
        target = wider
    cost = estimate(pruned_shape(teacher, target), budget, file_bytes)
    return Proposal(style, target, cost, _share(cost, budget)[1])


def _ladder(teacher: ModelConfig, style: Style) -> Iterator[PruneTarget]:
    """Ever smaller shapes."""
    if style == "wide":
        for layers in range(teacher.num_hidden_layers - 1, 0, -1):
            yield PruneTarget(num_hidden_layers=layers)
        return
    start = _round_down(teacher.hidden_size - 1)
    for hidden in range(start, _SMALLEST_HIDDEN - 1, -_MULTIPLE):
        factor = hidden / teacher.hidden_size
        depth = factor if style == "balanced" else 1.0
        yield PruneTarget(
            num_hidden_layers=max(1, round(teacher.num_hidden_layers * depth)),
            hidden_size=hidden,
            intermediate_size=_round_down(int(teacher.intermediate_size * factor)),
            num_key_value_heads=max(1, round(teacher.num_key_value_heads * factor)),
        )


def _wider(teacher: ModelConfig, target: PruneTarget) -> Iterator[PruneTarget]:
    """The same shape with more and more neurons."""
    widths = range(
        (target.intermediate_size or teacher.intermediate_size) + _MULTIPLE, teacher.intermediate_size + 1, _MULTIPLE
    )
    for width in widths:
        yield PruneTarget(
            target.num_hidden_layers, target.hidden_size, width, target.num_attention_heads, target.num_key_value_heads
        )


def _round_down(size: int) -> int:
    return max(_MULTIPLE, size // _MULTIPLE * _MULTIPLE)


def _spell(cost: Estimate) -> str:
    return f"{cost.file_bytes / 1e6:.1f} MB and {cost.seconds_per_token * 1e3:.2f} ms a token"


def _spell_budget(budget: Budget) -> str:
    size = None if budget.file_bytes is None else f"{budget.file_bytes:,} bytes"
    pace = None if budget.seconds_per_token is None else f"{budget.seconds_per_token * 1e3:.2f} ms a token"
    return " and ".join(bound for bound in (size, pace) if bound is not None)
