"""`attar data`: build a training set from a recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click

from attar.cli._console import err, make_table, out, print_json
from attar.distill.recipes import arithmetic, package_summaries, package_translations
from attar.distill.recipes._output import RecipeReport
from attar.distill.recipes._packages import PackagesReport
from attar.distill.recipes.package_translations import LanguagePair

RECIPES = ("package_summaries", "package_translations", "arithmetic")
# Which recipes read an option; one that would do nothing is refused.
_READ_BY = {
    "sample": ("package_summaries",),
    "max_words": ("package_summaries", "package_translations"),
    "pair": ("package_translations",),
    **dict.fromkeys(("train", "held_out", "min_steps", "max_steps", "seed"), ("arithmetic",)),
}
_DEFAULTS = arithmetic.ArithmeticConfig()
_STEPS = click.IntRange(arithmetic.MIN_STEPS, arithmetic.MAX_STEPS)


@click.command("data")
@click.argument("recipe", type=click.Choice(RECIPES), metavar="RECIPE")
@click.option("--out", "folder", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder.")
@click.option(
    "--sample/--apt", default=None, help="Demand the bundled sample, or apt's lists. Default: apt if it works."
)
@click.option("--max-words", type=click.IntRange(1), help="Leave out longer texts.")
@click.option("--pair", type=click.Choice(get_args(LanguagePair)), default="en-de", show_default=True, help="From, to.")
@click.option("--train", type=click.IntRange(1), default=_DEFAULTS.train, show_default=True, help="Problems to learn.")
@click.option(
    "--held-out", type=click.IntRange(1), default=_DEFAULTS.held_out, show_default=True, help="Of each other part."
)
@click.option("--min-steps", type=_STEPS, default=_DEFAULTS.min_steps, show_default=True, help="Shortest chain.")
@click.option("--max-steps", type=_STEPS, default=_DEFAULTS.max_steps, show_default=True, help="Longest chain.")
@click.option("--seed", type=int, default=_DEFAULTS.seed, show_default=True, help="Of the problems.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def command(recipe: str, folder: Path, as_json: bool, **options: Any) -> None:
    """Build the data set RECIPE (package_summaries, package_translations or arithmetic) into a folder: train.jsonl,
    validation.jsonl, test.jsonl, and recipe.json, which says how they were made. `attar distill` and `attar eval` take
    the folder as --data.

    package_summaries (--max-words, --sample/--apt): Debian's package descriptions to their one-line synopsis, made from
    apt's own package lists, which are fetched into a temporary folder (31 MB; the system's apt settings are left
    alone). A few hundred bundled pairs stand in where apt is absent.

    package_translations (--pair, --max-words): pieces of the same descriptions, in English, to their German or French
    translations. Needs apt. The packages held out are those of package_summaries.

    arithmetic (--train, --held-out, --min-steps, --max-steps, --seed): word problems with a chain of calculation and a
    final answer in GSM8K's form, made from the seed. test_held_out_schemas.jsonl asks kinds of story that are not
    learnt. GSM8K's own files need no recipe: `attar distill` and `attar eval` read them as they are published.
    """
    _refuse_idle_options(recipe)
    if options["min_steps"] > options["max_steps"]:
        raise click.UsageError(f"--min-steps {options['min_steps']} is above --max-steps {options['max_steps']}")
    notes: list[str] = []
    with err.status(recipe) as status:

        def say(text: str) -> None:
            status.update(text)
            notes.extend([text] if "bundled sample" in text else [])

        report = _build(recipe, folder, {name: options[name] for name in options if recipe in _READ_BY[name]}, say)
    for note in notes:
        err.print(f"note: {note}")
    if as_json:
        print_json(asdict(report))
        return
    out.print(make_table(f"{recipe} ({report.origin})", ["", "count"], _rows(report)))
    out.print(f"wrote {folder}", soft_wrap=True)


def _refuse_idle_options(recipe: str) -> None:
    """Names an option that was given and that the recipe does not read."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is not click.core.ParameterSource.DEFAULT
        readers = _READ_BY.get(parameter.name or "", RECIPES)
        if given and recipe not in readers:
            others = f"{' and '.join(readers)} {'do' if len(readers) > 1 else 'does'}"
            raise click.UsageError(f"{parameter.opts[0]} would do nothing: {recipe} does not read it; {others}")


def _build(recipe: str, folder: Path, options: dict[str, Any], say: Callable[[str], None]) -> RecipeReport:
    if recipe == "arithmetic":
        return arithmetic.build(folder, arithmetic.ArithmeticConfig(**options), progress=say)
    if recipe == "package_translations":
        return package_translations.build(folder, progress=say, **options)
    return package_summaries.build(folder, progress=say, **options)


def _rows(report: RecipeReport) -> list[tuple[str, str]]:
    """The report's counts: what was read, what was left out, what was kept and where it went."""
    counts: dict[str, int] = {f"dropped: {reason}": count for reason, count in report.dropped.items()}
    if isinstance(report, PackagesReport):
        counts = {"descriptions": report.descriptions, **counts, "source packages": report.sources}
    if isinstance(report, arithmetic.ArithmeticReport):
        counts |= {f"about: {name}": count for name, count in sorted(report.schemas.items())}
    counts |= {"pairs": report.pairs, **report.splits}
    return [(name, f"{count:,}") for name, count in counts.items()]
