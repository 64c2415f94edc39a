"""From a budget to the sizes that a teacher is cut to, and the table that shows how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from attar.cli._console import make_table, out, spell_bytes
from attar.cli._student_options import kept_sizes
from attar.distill.proposal import Budget, Proposal, propose
from attar.distill.pruning import PruneTarget
from attar.quantize.policy import make_scheme


def decide_prune_target(options: dict[str, Any]) -> PruneTarget | None:
    """The sizes asked for, or proposed for a budget; takes the options that decide it out."""
    target, favour = kept_sizes(options), options.pop("favour")
    if options["budget"] is None and options["ms_per_token"] is None:
        for name in ("budget", "ms_per_token", "weights", "device_bandwidth", "budget_context"):
            del options[name]
        return target
    if target is not None:
        raise click.UsageError("--budget and --ms-per-token choose the sizes: leave out --keep-*, or the budget")
    if options["teacher"] is None:
        raise click.UsageError("a budget is for a student cut from a teacher; name one with --teacher")
    budget, proposals = propose_shapes(Path(options["teacher"]), options)
    chosen = choose_proposal(proposals, favour)
    out.print(proposal_table(budget, proposals, chosen))
    out.print(spell_assumptions(budget))
    return chosen.target


def propose_shapes(source: Path, options: dict[str, Any]) -> tuple[Budget, list[Proposal]]:
    """Takes the budget's options but --favour out; shapes cut from the model within it.

    Raises:
      ProposalError: If none fits, or the model itself does.
    """
    from attar.engine.checkpoint import load_config
    from attar.export.gguf_writer import plan_bytes

    milliseconds, scheme = options.pop("ms_per_token"), make_scheme(options.pop("weights"))
    budget = Budget(
        options.pop("budget"),
        None if milliseconds is None else milliseconds / 1e3,
        scheme,
        options.pop("device_bandwidth") * 1e9,
        options.pop("budget_context"),
    )
    return budget, propose(load_config(source), budget, plan_bytes(source, scheme))


def proposal_table(budget: Budget, proposals: list[Proposal], chosen: Proposal) -> Table:
    """Shapes with what they cost; the chosen one is marked."""
    rows = []
    for proposal in proposals:
        cost, shape = proposal.estimate, proposal.estimate.shape
        rows.append(
            (
                f"{'→ ' if proposal is chosen else '  '}{proposal.style}",
                f"{shape.num_hidden_layers}",
                f"{shape.hidden_size}",
                f"{shape.intermediate_size}",
                f"{shape.num_attention_heads}/{shape.num_key_value_heads}",
                f"{shape.num_parameters / 1e6:.1f}M",
                spell_bytes(cost.file_bytes),
                spell_bytes(cost.weight_bytes),
                spell_bytes(cost.cache_bytes),
                f"{cost.seconds_per_token * 1e3:.2f}",
                proposal.binding,
            )
        )
    columns = ["", "layers", "hidden", "MLP", "heads/KV", "weights", "file", "read/token", "cache", "ms/token", "bound"]
    return make_table("students within the budget", columns, rows)


def spell_assumptions(budget: Budget) -> str:
    """How the table was estimated."""
    return (
        f"file: {budget.scheme.name} projections, {budget.scheme.embedding} token table, vocabulary and metadata. "
        f"Time: weights and a float16 cache of {budget.context_tokens} tokens, read once a token at "
        f"{budget.bandwidth / 1e9:g} GB/s (--device-bandwidth)."
    )


def choose_proposal(proposals: list[Proposal], favour: str) -> Proposal:
    """The proposal of a style.

    Raises:
      ClickException: If that style has no shape within the budget.
    """
    for proposal in proposals:
        if proposal.style == favour:
            return proposal
    others = ", ".join(proposal.style for proposal in proposals)
    raise click.ClickException(f"no {favour} student is within the budget; --favour one of: {others}")
