"""`attar data`: build a training set from a recipe."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from attar.cli._console import err, make_table, out, print_json
from attar.distill.recipes import package_summaries


@click.command("data")
@click.argument("recipe", type=click.Choice(["package_summaries"]))
@click.option("--out", "folder", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder.")
@click.option(
    "--sample/--apt", default=None, help="Demand the bundled sample, or apt's lists. Default: apt if it works."
)
@click.option("--max-words", type=click.IntRange(1), help="Leave out longer documents.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def command(recipe: str, folder: Path, sample: bool | None, max_words: int | None, as_json: bool) -> None:
    """Build the data set RECIPE into a folder: train.jsonl, validation.jsonl, test.jsonl, recipe.json.

    package_summaries: Debian's package descriptions to their one-line synopsis, made from apt's own package lists
    (31 MB are fetched into a temporary folder; the system's apt settings are left alone). A few hundred bundled pairs
    stand in where apt is absent.
    """
    notes: list[str] = []
    with err.status(recipe) as status:

        def say(text: str) -> None:
            status.update(text)
            notes.extend([text] if "bundled sample" in text else [])

        report = package_summaries.build(folder, sample=sample, max_words=max_words, progress=say)
    for note in notes:
        err.print(f"note: {note}")
    if as_json:
        print_json(asdict(report))
        return
    rows = [(f"dropped: {reason}", f"{count:,}") for reason, count in report.dropped.items()]
    rows = [("descriptions", f"{report.descriptions:,}"), *rows, ("pairs", f"{report.pairs:,}")]
    rows += [("source packages", f"{report.sources:,}"), *((name, f"{n:,}") for name, n in report.splits.items())]
    out.print(make_table(f"{recipe} ({report.origin})", ["", "count"], rows))
    out.print(f"wrote {folder}", soft_wrap=True)
