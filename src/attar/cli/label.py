"""`attar label`: store a teacher's targets for a data set, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from attar.cli._compilation_cache import use_compilation_cache
from attar.cli._console import out, print_json, progress_bar, spell_bytes
from attar.cli._models import model_source
from attar.distill.label import LabelConfig, label
from attar.distill.records import Documents
from attar.distill.step import ComputeDtype
from attar.distill.target_folder import TargetKind

_POSITIVE = click.IntRange(1)
_ABOVE_0 = click.FloatRange(0, min_open=True)


@click.command("label")
@click.option("--teacher", required=True, help="Model to learn from: a name, a checkpoint folder or a GGUF.")
@click.option("--data", required=True, multiple=True, help="File, glob pattern, or recipe's folder; may be repeated.")
@click.option(
    "--out", "folder", required=True, type=click.Path(path_type=Path, file_okay=False), help="Targets' folder."
)
@click.option(
    "--keep", "kind", type=click.Choice(get_args(TargetKind)), default="top", show_default=True, help="Below."
)
@click.option("--tokens", "tokens_per_position", type=_POSITIVE, default=64, show_default=True, help="Kept a position.")
@click.option("--temperature", type=_ABOVE_0, default=1.0, show_default=True, help="Divides the teacher's logits.")
@click.option("--max-new-tokens", type=_POSITIVE, default=128, show_default=True, help="Longest completion kept.")
@click.option("--max-prompt-tokens", type=_POSITIVE, help="Longest prompt allowed; default: what the context leaves.")
@click.option("--prompt-format", type=click.Choice(["auto", "plain", "chat"]), default="auto", show_default=True)
@click.option("--documents", type=click.Choice(get_args(Documents)), default="file", show_default=True, help="In .txt.")
@click.option("--max-tokens", type=click.IntRange(2), help="Windows plain text is cut into; default: 512 or context.")
@click.option("--batch-size", type=_POSITIVE, default=16, show_default=True, help="Rows scored at a time.")
@click.option(
    "--shard-examples", type=_POSITIVE, default=1024, show_default=True, help="Examples a file: what a kill costs."
)
@click.option("--compute-dtype", type=click.Choice(get_args(ComputeDtype)), default="float32", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of drawn tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(teacher: str, data: tuple[str, ...], folder: Path, as_json: bool, **options: Any) -> None:
    """Score DATA with the teacher once, and keep what it says at every completion position, so that
    `attar distill --targets` on the same --data can train many students, or one for many passes, without running the
    teacher again. The same command on the same folder goes on where it was stopped, and ends with the same bytes.

    \b
    top    the likeliest tokens with their log-probabilities. What they lack of a mass of 1 stays the mass of all
           other tokens: students learn how much else can follow. A lower bound of the whole loss.
    drawn  tokens drawn from the teacher, which stand for all of its distribution without bias: Gemma Team, 2025,
           arXiv:2503.19786, section 2.2.
    states the teacher's last hidden states and its table of logits: all of its distribution, for every divergence and
           temperature. 4 bytes times the teacher's width a position.
    """
    _refuse_idle(options)
    use_compilation_cache()
    files = tuple(str(Path(name) / "train.jsonl") if Path(name).is_dir() else name for name in data)
    config = LabelConfig(files, str(model_source(teacher)), **options)
    with progress_bar() as bar:
        task = bar.add_task("label", total=None, note="[dim]loading the teacher[/]")
        index = label(config, folder, lambda done, of: bar.update(task, completed=done, total=of, note=""))
    shards = index["shards"]
    if as_json:
        print_json(index)
        return
    positions, size = sum(s["positions"] for s in shards), sum(s["bytes"] for s in shards)
    out.print(f"{positions:,} positions of {index['num_examples']:,} examples, {spell_bytes(size)}")
    if index["kind"] == "top" and positions:
        kept = sum(s["mean_kept_mass"] * s["positions"] for s in shards) / positions
        out.print(f"the tokens kept hold {100 * kept:.2f} % of the teacher's mass")
    out.print(f"targets: {folder}", soft_wrap=True)


_IDLE = {
    "top": {"seed": "draws nothing"},
    "drawn": {},
    "states": dict.fromkeys(("seed", "tokens_per_position", "temperature"), "keeps all"),
}


def _refuse_idle(options: dict[str, Any]) -> None:
    """Options that this kind of targets has no use for."""
    source = click.get_current_context().get_parameter_source
    for name, why in _IDLE[options["kind"]].items():
        if source(name) is not click.core.ParameterSource.DEFAULT:
            flag = "--tokens" if name == "tokens_per_position" else f"--{name}"
            raise click.UsageError(f"{flag} would do nothing: --keep {options['kind']} {why}")
