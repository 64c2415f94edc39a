"""`attar generate`: a teacher answers the prompts of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from attar.cli._compilation_cache import use_compilation_cache
from attar.cli._console import err, out, print_json, progress_bar
from attar.cli._models import model_source
from attar.distill.step import ComputeDtype
from attar.distill.write_completions import WriteConfig, write_completions

_POSITIVE = click.IntRange(1)


@click.command("generate")
@click.option("--teacher", required=True, help="Model that answers: a name, a checkpoint folder or a GGUF.")
@click.option("--data", required=True, multiple=True, help="File, glob pattern, or recipe's folder; may be repeated.")
@click.option("--out", "path", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSONL to write.")
@click.option("--temperature", type=click.FloatRange(0), default=1.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=click.IntRange(0), default=0, show_default=True, help="Of the k likeliest; 0: all.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Nucleus.")
@click.option("--samples", type=_POSITIVE, default=1, show_default=True, help="Answers to each prompt.")
@click.option("--max-new-tokens", type=_POSITIVE, default=128, show_default=True, help="Longer answers are dropped.")
@click.option("--max-prompt-tokens", type=_POSITIVE, help="Longest prompt allowed; default: what the context leaves.")
@click.option("--prompt-format", type=click.Choice(["auto", "plain", "chat"]), default="auto", show_default=True)
@click.option("--batch-size", type=_POSITIVE, default=16, show_default=True, help="Prompts answered at a time.")
@click.option("--part-examples", type=_POSITIVE, default=256, show_default=True, help="What a kill costs.")
@click.option("--compute-dtype", type=click.Choice(get_args(ComputeDtype)), default="float32", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(teacher: str, data: tuple[str, ...], path: Path, as_json: bool, **options: Any) -> None:
    """Have the teacher answer the prompts of DATA, to a JSONL that `attar distill --method sft` learns: sequence-level
    distillation (Kim and Rush, 2016, arXiv:1606.07947). The same command goes on where it was stopped, and ends with
    the same bytes.

    Of a conversation the last answer is written anew. Answers without an end within --max-new-tokens are dropped.
    What was asked of whom stands beside the file, in OUT with the ending .provenance.json.
    """
    use_compilation_cache()
    files = tuple(str(Path(name) / "train.jsonl") if Path(name).is_dir() else name for name in data)
    try:
        config = WriteConfig(files, str(model_source(teacher)), **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with progress_bar() as bar:
        task = bar.add_task("generate", total=None, note="[dim]loading the teacher[/]")
        told = write_completions(config, path, lambda done, of: bar.update(task, completed=done, total=of, note=""))
    if as_json:
        print_json(told)
        return
    if told["dropped_unfinished"]:
        err.print(f"note: {told['dropped_unfinished']} answers came to no end and were dropped", soft_wrap=True)
    out.print(f"{told['written']} answers to {told['prompts']} prompts: {path}", soft_wrap=True)
