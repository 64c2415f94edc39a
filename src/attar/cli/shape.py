"""`attar shape`: what a student may look like under a budget."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from attar.cli._console import out, print_json
from attar.cli._models import model_source
from attar.cli._proposals import choose_proposal, proposal_table, propose_shapes, spell_assumptions
from attar.cli._student_options import budget_options
from attar.distill.proposal import Proposal


@click.command("shape")
@click.argument("teacher")
@budget_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(teacher: str, as_json: bool, **options: Any) -> None:
    """Propose shapes of a student cut from TEACHER that keep a budget: --budget 40MB, --ms-per-token 10, or both.

    Nothing is trained. `attar distill` with the same options prunes the teacher to the proposal and trains it.
    """
    if options["budget"] is None and options["ms_per_token"] is None:
        raise click.UsageError("give --budget, --ms-per-token or both")
    favour = options.pop("favour")
    budget, proposals = propose_shapes(model_source(teacher), options)
    chosen = choose_proposal(proposals, favour)
    if as_json:
        print_json({"chosen": chosen.style, "proposals": [_to_json(proposal) for proposal in proposals]})
        return
    out.print(proposal_table(budget, proposals, chosen))
    out.print(spell_assumptions(budget))


def _to_json(proposal: Proposal) -> dict[str, Any]:
    cost = proposal.estimate
    return {
        "style": proposal.style,
        "target": asdict(proposal.target),
        "parameters": cost.shape.num_parameters,
        "file_bytes": cost.file_bytes,
        "weight_bytes": cost.weight_bytes,
        "cache_bytes": cost.cache_bytes,
        "ms_per_token": cost.seconds_per_token * 1e3,
        "binding": proposal.binding,
    }
