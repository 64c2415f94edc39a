"""Options of `attar distill` that say what the student is, and what of it is trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from attar.distill.lora import LORA_TARGETS
from attar.distill.proposal import PHONE_BANDWIDTH, STYLES
from attar.distill.pruning import PruneTarget
from attar.quantize.policy import SCHEMES

Command = TypeVar("Command", bound=Callable[..., Any])

_KEPT = {
    "keep_layers": "num_hidden_layers",
    "keep_hidden": "hidden_size",
    "keep_intermediate": "intermediate_size",
    "keep_heads": "num_attention_heads",
    "keep_kv_heads": "num_key_value_heads",
}
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_BOUNDS = ("budget", "ms_per_token")
# Options that are read only where one of others is given.
NEEDED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("lora_alpha", "lora_targets", "lora_rank_stabilized"), ("lora_rank",)),
    **dict.fromkeys(("weights", "device_bandwidth", "budget_context", "favour"), _BOUNDS),
    "calibration_examples": (*_KEPT, *_BOUNDS),
}


def parse_size(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Bytes spelled as 40MB (10^6), 1.5GB, 64MiB (2^20) or a plain number."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) == 0:
        raise click.BadParameter(f"{text!r} is no size; write 40MB, 1.5GB or 64MiB", context, parameter)
    return int(float(match[1]) * unit)


def pruning_options(command: Command) -> Command:
    """To which sizes the teacher is cut."""
    size = click.IntRange(1)
    return _add(
        command,
        click.option(
            "--keep-layers",
            type=size,
            help="Start from N layers of the teacher: those in a row go that do least.",
        ),
        click.option("--keep-hidden", type=size, help="Cut the residual stream to its N largest channels."),
        click.option("--keep-intermediate", type=size, help="Cut every MLP to its N most active neurons."),
        click.option("--keep-heads", type=size, help="Keep N query heads a layer, equally many for each KV head."),
        click.option("--keep-kv-heads", type=size, help="Keep N KV heads a layer, with the query heads of each."),
        click.option(
            "--calibration-examples",
            type=size,
            default=32,
            show_default=True,
            help="Training examples that show which parts of the teacher contribute.",
        ),
    )


def budget_options(command: Command) -> Command:
    """What the student may cost on the device."""
    above_0 = click.FloatRange(0, min_open=True)
    return _add(
        command,
        click.option(
            "--budget", callback=parse_size, metavar="SIZE", help="Cut the teacher until its exported file fits: 40MB."
        ),
        click.option("--ms-per-token", type=above_0, help="Cut the teacher until decoding takes at most so long."),
        click.option(
            "--weights",
            type=click.Choice(list(SCHEMES), case_sensitive=False),
            default="Q4_0",
            show_default=True,
            help="Types of the exported weights that a budget is for.",
        ),
        click.option(
            "--device-bandwidth",
            type=above_0,
            default=PHONE_BANDWIDTH / 1e9,
            show_default=True,
            help="GB/s that the device reads; the default is half of 64-bit LPDDR5-6400, as a phone's cores reach.",
        ),
        click.option(
            "--budget-context",
            type=click.IntRange(1),
            default=1024,
            show_default=True,
            help="Tokens in the cache that --ms-per-token is meant at.",
        ),
        click.option(
            "--favour",
            type=click.Choice(STYLES),
            default="balanced",
            show_default=True,
            help="deep keeps all layers and cuts the width, wide the reverse, balanced cuts both by one factor.",
        ),
    )


def adaptation_options(command: Command) -> Command:
    """What of the student is trained, and how its weights are rounded."""
    return _add(
        command,
        click.option(
            "--lora-rank",
            type=click.IntRange(1),
            help="Freeze the weights and train W + (alpha / rank) B A: a small adapter. Start with 8 to 64.",
        ),
        click.option(
            "--lora-alpha",
            type=click.FloatRange(0, min_open=True),
            help="Of the adapter's scale; default: the rank, so that the scale is 1. Twice that learns faster.",
        ),
        click.option(
            "--lora-targets",
            default=",".join(LORA_TARGETS),
            help="Projections with an adapter; default: all seven of a layer. 'q_proj,v_proj' is the paper's choice.",
        ),
        click.option(
            "--lora-rank-stabilized", is_flag=True, help="Scale by alpha / sqrt(rank): for ranks of 64 and above."
        ),
        click.option(
            "--qat",
            type=click.Choice([name for name in SCHEMES if name.startswith("Q")], case_sensitive=False),
            help="Train for a quantised file: compute with weights rounded as `attar export --weights` rounds them, "
            "let gradients pass straight through. Export the student with the same type.",
        ),
    )


def kept_sizes(options: dict[str, Any]) -> PruneTarget | None:
    """Takes the --keep-* options out; None where none is given."""
    kept = PruneTarget(**{field: options.pop(name) for name, field in _KEPT.items()})
    return kept if kept else None


def _add(command: Command, *options: Callable[[Command], Command]) -> Command:
    """Options in the order in which they are listed."""
    for option in reversed(options):
        command = option(command)
    return command


def parse_targets(text: str) -> tuple[str, ...]:
    """Names of projections, separated by commas; `Lora` says which there are."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
