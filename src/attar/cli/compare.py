"""`attar compare`: tell runs apart on the held-out examples they share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
from rich.table import Table

from attar.cli._console import make_table, out, print_json
from attar.cli._plots import plot_runs
from attar.distill.bootstrap import Difference
from attar.distill.compare import Comparison, compare_runs, read_run

_LOWER_IS_BETTER = ("nll", "perplexity", "bits_per_byte", "word_perplexity", "kl_", "self_bleu")
_PLOT_FORMATS = (".png", ".svg", ".pdf")


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--step", type=click.IntRange(0), help="Compare the evaluations of this step; default: each run's last.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw their curves (.png, .svg, .pdf).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(runs: tuple[Path, ...], step: int | None, plot: Path | None, as_json: bool) -> None:
    """Compare RUNS, two or more run folders of `attar distill`, on the held-out examples that they share.

    \b
    attar compare run-sft run-gkd
    attar compare run-sft run-gkd run-gkd-reverse --plot curves.png

    Each run's difference to the first is judged in pairs. An example that is hard for one run is hard for the other,
    so what both have in common is taken out: two runs whose own intervals overlap may still differ clearly.

    \b
    difference     second run less first run; bold where its 95 % interval leaves out 0
    95 % interval  of that difference, by drawing the examples 2,000 times with replacement, the same for both runs
    p              how often the sign would be another, two-sided (Koehn, 2004); with twenty scores in a table one
                   below 0.05 is no surprise
    ↑ ↓            whether more or less is better

    The interval speaks of other examples, not of other seeds: a run trained again differs as well. Compare the seeds
    of one recipe, too, before you trust a small gain.
    """
    if len(runs) < 2:
        raise click.UsageError(f"compare takes at least two run folders, got {len(runs)}")
    if plot is not None and plot.suffix not in _PLOT_FORMATS:
        raise click.UsageError(f"--plot takes a file ending in {', '.join(_PLOT_FORMATS)}, got {plot}")
    records = [read_run(run) for run in runs]
    comparison = compare_runs(records, step)
    labels = _labels(runs)
    if plot is not None:
        plot_runs(records, labels, plot)
    if as_json:
        print_json({"runs": [str(run) for run in runs], **dataclasses.asdict(comparison)})
        return
    for index in range(1, len(runs)):
        out.print(_pair_table(comparison, labels, index))
    out.print(_summary(comparison, labels))
    for note in comparison.notes:
        out.print(f"[yellow]note[/]  {note}")


def _labels(runs: tuple[Path, ...]) -> list[str]:
    """Names of the folders, or their paths where two names are equal."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _pair_table(comparison: Comparison, labels: list[str], index: int) -> Table:
    """Run `index` beside the first."""
    rows = [
        (_arrow(row.name), f"{row.values[0]:.4f}", f"{row.values[index]:.4f}", *_spell(row.differences[index - 1]))
        for row in comparison.rows
    ]
    return make_table(None, ["", labels[0], labels[index], "difference", "95 % interval", "p"], rows)


def _arrow(name: str) -> str:
    return f"{name} {'↓' if name.startswith(_LOWER_IS_BETTER) else '↑'}"


def _spell(difference: Difference) -> tuple[str, str, str]:
    clear = difference.low > 0 or difference.high < 0
    text = f"{difference.mean:+.4f}"
    interval = f"{difference.low:+.4f} … {difference.high:+.4f}"
    return f"[bold]{text}[/]" if clear else text, interval, f"{difference.p_value:.3f}"


def _summary(comparison: Comparison, labels: list[str]) -> str:
    parts = [
        f"{label} at step {step} ({count} examples)"
        for label, step, count in zip(labels, comparison.steps, comparison.num_examples, strict=True)
    ]
    return f"{comparison.num_shared} shared examples: {', '.join(parts)}"
