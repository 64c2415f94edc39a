"""`attar bench`: measure exported files side by side, each in a process of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
from rich.table import Table

from attar.cli._console import err, make_table, out, print_json, progress_bar, spell_bytes, spell_seconds
from attar.cli._models import device_file
from attar.runtime.bench import BenchPlan, BenchResult, measure_in_subprocess


def _parse_depths(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        depths = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected token counts separated by commas, got {value!r}") from None
    if min(depths) < 0:
        raise click.BadParameter(f"depths must be at least 0, got {min(depths)}")
    return depths


@click.command("bench")
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--prompt", "-p", default=512, show_default=True, type=click.IntRange(1), help="Tokens of the prefill figure."
)
@click.option(
    "--depths",
    default="0,512,2048",
    show_default=True,
    callback=_parse_depths,
    help="Contexts at which decoding is timed.",
)
@click.option(
    "--tokens", "-n", default=48, show_default=True, type=click.IntRange(1), help="Tokens decoded at each depth."
)
@click.option(
    "--repeats", default=3, show_default=True, type=click.IntRange(1), help="Takes of each figure; the median counts."
)
@click.option("--threads", "-t", type=click.IntRange(1), help="Threads; default: the usable cores.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures as a picture (.png, .svg)."
)
def command(
    models: tuple[str, ...],
    prompt: int,
    depths: tuple[int, ...],
    tokens: int,
    repeats: int,
    threads: int | None,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Measure MODELS side by side: load time, time to first token (128-token prompt), prefill and decode tokens/s,
    peak resident memory, file size. The backend follows from the file: .gguf runs in attar's C library, .onnx in
    onnxruntime, .tflite in LiteRT.

    Peak RSS is the whole process, Python and the backend's library included; "the model's own" leaves out what the
    process held before it opened the file.
    """
    plan = BenchPlan(prompt, depths, tokens, repeats, threads)
    paths = [device_file(model) for model in models]
    results = []
    with progress_bar() as bar:
        task = bar.add_task("bench", total=len(paths), note="")
        for name, path in zip(models, paths, strict=True):
            bar.update(task, note=name)
            results.append(measure_in_subprocess(path, plan))
            bar.advance(task)
    if plot is not None:
        from attar.cli._plots import plot_bench

        plot_bench(results, plot)
        err.print(f"wrote {plot}", soft_wrap=True)
    if as_json:
        print_json({"results": [dataclasses.asdict(result) for result in results]})
        return
    out.print(bench_table(list(models), results, depths))


def bench_table(names: list[str], results: list[BenchResult], depths: tuple[int, ...]) -> Table:
    """The results as a table: a column for each file, so that any number of figures fits a terminal."""
    rows: list[tuple[str, Callable[[BenchResult], str]]] = [
        ("runtime", lambda r: {"native": "attar (C)", "onnx": "onnxruntime", "litert": "LiteRT"}[r.backend]),
        ("file", lambda r: spell_bytes(r.file_bytes)),
        ("load", lambda r: spell_seconds(r.load_seconds)),
        ("first token (128-token prompt)", lambda r: spell_seconds(r.first_token_seconds)),
        ("prefill, tokens/s", lambda r: f"{r.prefill_tokens_per_second:.0f}"),
        *((f"decode at {depth}, tokens/s", partial(_spell_speed, depth=depth)) for depth in depths),
        ("peak RSS, whole process", lambda r: spell_bytes(r.peak_rss_bytes)),
        ("peak RSS, the model's own", lambda r: spell_bytes(r.peak_rss_bytes - r.baseline_rss_bytes)),
        ("KV cache", lambda r: spell_bytes(r.cache_bytes)),
    ]
    labels = [Path(name).name or name for name in names]
    return make_table(None, ["", *labels], [[label, *map(spell, results)] for label, spell in rows])


def _spell_speed(result: BenchResult, depth: int) -> str:
    speed = result.decode_tokens_per_second.get(depth)
    return "-" if speed is None else f"{speed:.1f}"
