"""Plots of the command line. matplotlib is imported when one is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attar.runtime.bench import BenchResult


def plot_bench(results: Sequence[BenchResult], path: Path) -> None:
    """Decode speed against context depth, and bars of prefill, first token, memory and size, one colour a file."""
    from matplotlib.figure import Figure

    names = [Path(result.path).name for result in results]
    colours = [f"C{i}" for i in range(len(results))]
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    axes = figure.subplot_mosaic([["decode", "decode", "prefill"], ["first", "memory", "size"]])
    for result, name, colour in zip(results, names, colours, strict=True):
        depths = sorted(result.decode_tokens_per_second)
        speeds = [result.decode_tokens_per_second[depth] for depth in depths]
        axes["decode"].plot(depths, speeds, "o-", color=colour, label=f"{name} ({result.backend})")
    axes["decode"].set(title="decode, tokens/s", xlabel="context depth (tokens)", ylim=(0, None))
    axes["decode"].legend(fontsize=8)
    bars = {
        "prefill": ("prefill, tokens/s", [r.prefill_tokens_per_second for r in results]),
        "first": ("time to first token, ms", [r.first_token_seconds * 1e3 for r in results]),
        "memory": ("peak RSS, MB", [r.peak_rss_bytes / 1e6 for r in results]),
        "size": ("file, MB", [r.file_bytes / 1e6 for r in results]),
    }
    for key, (title, values) in bars.items():
        drawn = axes[key].barh(range(len(values)), values, color=colours)
        axes[key].bar_label(drawn, fmt="%.0f", fontsize=8, padding=2)
        axes[key].set(title=title, yticks=range(len(values)), yticklabels=names, xlim=(0, 1.18 * max(values)))
        axes[key].tick_params(axis="y", labelsize=7)
        axes[key].invert_yaxis()
    figure.savefig(path, dpi=120)
