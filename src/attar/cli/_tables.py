"""Tables that more than one command prints."""

from __future__ import annotations

from rich.table import Table

from attar.cli._console import make_table
from attar.distill.evaluate import Evaluation


def evaluation_table(title: str, evaluation: Evaluation) -> Table:
    """Scores with their 95 % intervals."""
    rows = [
        (name, f"{score.mean:.4f}", f"{score.low:.4f} … {score.high:.4f}") for name, score in evaluation.scores.items()
    ]
    rows.append(("perplexity", f"{evaluation.perplexity:.3f}", ""))
    return make_table(title, ["", "mean", "95 % interval"], rows)
