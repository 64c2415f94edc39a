"""Plots of the command line. matplotlib is imported when one is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attar.runtime.bench import BenchResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

    from attar.distill.compare import RunRecord  # needs the extra for training, which measuring a file does not

_CURVES = {
    "kl_student_teacher_samples": "KL(student ‖ teacher) on own samples, nats per token",
    "agreement_data": "agreement with the teacher",
    "nll": "held-out negative log-likelihood, nats per token",
    "rougeL": "ROUGE-L",
    "chrf": "chrF",
    "bleu": "BLEU",
    "self_bleu_samples": "self-BLEU of samples (less is more diverse)",
}


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


def plot_runs(runs: Sequence[RunRecord], labels: Sequence[str], path: Path) -> None:
    """Training loss and held-out scores over steps with their 95 % intervals, one colour a run."""
    from matplotlib.figure import Figure

    curves = [name for name in _CURVES if all(name in run.evaluations[-1]["scores"] for run in runs)]
    columns = min(4, -(-(len(curves) + 1) // 2))
    rows = -(-(len(curves) + 1) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.4), layout="constrained")
    loss, *others = figure.subplots(rows, columns, squeeze=False).flat
    for index, run in enumerate(runs):
        _plot_loss(loss, run.steps, f"C{index}")
        for axes, name in zip(others, curves, strict=False):
            _plot_score(axes, run.evaluations, name, f"C{index}", labels[index])
    loss.set(title="training loss, nats per token", xlabel="step")
    if any(line["on_policy"] for run in runs for line in run.steps):
        loss.legend(handles=_line_styles(), fontsize=8)
    for axes, name in zip(others, curves, strict=False):
        axes.set(title=_CURVES[name], xlabel="step")
    for axes in (loss, *others):
        axes.grid(alpha=0.3)
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=8)
        axes.set_visible(bool(axes.get_title()))
    figure.legend(*others[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(runs), frameon=False)
    figure.savefig(path, dpi=120)


def _plot_loss(axes: Axes, steps: Sequence[dict[str, Any]], colour: str) -> None:
    """Smoothed, over the points; batches that the student sampled have another loss, and so a line of their own."""
    from attar.distill.report import smoothed

    for on_policy, style in ((False, "-"), (True, "--")):
        chosen = [line for line in steps if line["on_policy"] is on_policy]
        numbers, losses = [line["step"] for line in chosen], [line["loss"] for line in chosen]
        axes.plot(numbers, losses, ".", markersize=2, alpha=0.2, color=colour)
        axes.plot(numbers, smoothed(losses), style, color=colour, linewidth=1.2)


def _line_styles() -> list[Line2D]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color="0.3", linestyle="-", label="on the data"),
        Line2D([], [], color="0.3", linestyle="--", label="on the student's samples"),
    ]


def _plot_score(axes: Axes, evaluations: Sequence[dict[str, Any]], name: str, colour: str, label: str) -> None:
    present = [line for line in evaluations if name in line["scores"]]
    steps = [line["step"] for line in present]
    mean, low, high = ([line["scores"][name][end] for line in present] for end in ("mean", "low", "high"))
    axes.plot(steps, mean, "o-", markersize=4, color=colour, label=label)
    axes.fill_between(steps, low, high, alpha=0.15, color=colour, linewidth=0)
