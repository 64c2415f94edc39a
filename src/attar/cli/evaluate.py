"""`attar eval`: score a model on held-out examples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import click

from attar.cli._compilation_cache import use_compilation_cache
from attar.cli._console import out, print_json, progress_bar
from attar.cli._models import checkpoint_folder, is_checkpoint, model_source
from attar.cli._tables import evaluation_table
from attar.distill.data import DataSet, Example, Limits, PromptFormat, Windows, load_examples
from attar.distill.evaluate import EvalSettings, Evaluation, Network, asked_examples, evaluate
from attar.distill.evaluate_device import evaluate_session
from attar.distill.records import Documents
from attar.distill.run_inputs import held_out_windows
from attar.engine.checkpoint import load_config, load_model
from attar.engine.tokenizer import Tokenizer, load_tokenizer
from attar.runtime.hub import resolve
from attar.runtime.session import open_session

_TEXT_WINDOW = 512


@click.command("eval")
@click.argument("model")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help=".jsonl, .parquet, .txt, or a folder's test.jsonl."
)
@click.option("--teacher", help="Compare the distributions with this model's.")
@click.option("--examples", "-n", type=click.IntRange(1), help="Use the first so many; default: all.")
@click.option("--scored-examples", type=click.IntRange(1), help="Of these, read so many for perplexity and KL.")
@click.option("--max-new-tokens", default=128, show_default=True, type=click.IntRange(1))
@click.option("--max-prompt-tokens", default=4096, show_default=True, type=click.IntRange(1))
@click.option("--max-tokens", type=click.IntRange(2), help="Windows plain text is read in; default: 512 or context.")
@click.option("--stride", type=click.IntRange(1), help="Tokens scored in each window, after context; default: half.")
@click.option("--documents", type=click.Choice(get_args(Documents)), default="file", show_default=True, help="In .txt.")
@click.option("--prompt-format", type=click.Choice(["auto", "plain", "chat"]), default="auto", show_default=True)
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, help="Of the samples.")
@click.option("--threads", "-t", type=click.IntRange(1), help="Threads of an exported file's runtime.")
@click.option("--samples", default=0, show_default=True, type=click.IntRange(0), help="Print so many answers.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model: str,
    data: Path,
    teacher: str | None,
    examples: int | None,
    scored_examples: int | None,
    max_new_tokens: int,
    max_prompt_tokens: int,
    max_tokens: int | None,
    stride: int | None,
    documents: Documents,
    prompt_format: PromptFormat,
    batch_size: int,
    seed: int,
    threads: int | None,
    samples: int,
    as_json: bool,
) -> None:
    """Score MODEL on held-out examples: ROUGE, BLEU, chrF and exact match of greedy answers, perplexity of the given
    ones, and with --teacher divergence to it and agreement with it, on the data and on MODEL's own samples, and how
    diverse those are. Where the given answers end in "#### 12", final answers and chains of calculation are checked,
    with and without a calculator at hand.

    Plain text (.txt, or a "text" in each row) is scored in windows that overlap, every token once: perplexity by token,
    by word, and bits per byte, which compare models of different tokenizers.

    A checkpoint runs in JAX; an exported file (.gguf, .onnx, .tflite) answers through its own runtime.
    """
    use_compilation_cache()
    path = checkpoint_folder(resolve(model))
    tokenizer = load_tokenizer(path.parent if path.suffix in (".tflite", ".onnx") else path)
    file = data / "test.jsonl" if data.is_dir() else data
    limits = Limits(max_prompt_tokens, max_new_tokens, windows=_windows(max_tokens or _default_window(path), stride))
    held_out = load_examples(file, tokenizer, limits, prompt_format, examples, documents)
    _refuse_idle_options(held_out, file)
    settings = EvalSettings(batch_size, max_new_tokens, seed, samples, scored_examples)
    network = None if teacher is None else _network(model_source(teacher))
    if is_checkpoint(path):
        result = evaluate(_network(path), network, tokenizer, held_out, settings)
    else:
        result = _evaluate_file(path, network, tokenizer, held_out, settings, threads)
    if as_json:
        summary = dataclasses.asdict(dataclasses.replace(result, results=()))
        del summary["results"]
        print_json({"model": model, "examples": len(held_out.examples), **summary})
        return
    out.print(evaluation_table(f"{model} on {len(held_out.examples)} examples", result))
    for sample in result.samples:
        out.print(f"[bold]·[/] {sample.completion!r}\n  [dim]reference {sample.reference!r}[/]")


def _default_window(path: Path) -> int:
    """Tokens of a window of text: what the model's context allows, where it is known, up to 512."""
    context = load_config(path).max_position_embeddings if is_checkpoint(path) else _TEXT_WINDOW
    return min(_TEXT_WINDOW, context)


def _windows(tokens: int, stride: int | None) -> Windows:
    if stride is None:
        return held_out_windows(tokens)
    if stride >= tokens:
        raise click.UsageError(f"--stride must be below --max-tokens, got {stride} and {tokens}")
    return Windows(tokens, tokens - stride, ended=False)


def _refuse_idle_options(data: DataSet, file: Path) -> None:
    """Names an option of plain text that was given where the data holds none."""
    context = click.get_current_context()
    idle = () if data.num_texts else ("max_tokens", "stride")
    for name in (*idle, *(() if file.suffix == ".txt" else ("documents",))):
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name.replace('_', '-')} would do nothing: {file} holds no plain text to cut")


def _network(source: Path) -> Network:
    model = load_model(source)
    return Network(model.params, model.config)


def _evaluate_file(
    path: Path,
    teacher: Network | None,
    tokenizer: Tokenizer,
    data: DataSet,
    settings: EvalSettings,
    threads: int | None,
) -> Evaluation:
    longest = max(_session_tokens(example, settings.max_new_tokens) for example in data.examples)
    sampled = asked_examples(data.examples[: settings.scored_examples]) if teacher else ()
    total = len(data.examples) + len(sampled)
    with open_session(path, context_length=longest, threads=threads) as session, progress_bar() as bar:
        task = bar.add_task("eval", total=total, note="")
        return evaluate_session(
            session,
            teacher,
            tokenizer,
            data,
            settings,
            on_example=lambda done: bar.update(task, completed=done),
        )


def _session_tokens(example: Example, max_new_tokens: int) -> int:
    """Context that an example needs: its prompt with its completion, and with an answer where one is asked for."""
    answer = max_new_tokens if example.text_size is None else 0
    return len(example.prompt) + max(len(example.completion), answer)
