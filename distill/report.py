"""The report of a run: curves as PNG files and one HTML page that holds them, readable without a network."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attar.distill.run_folder import read_metrics, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CURVES = {
    "kl": ("Divergence on held-out prompts, nats per token", ("kl_student_teacher_samples", "kl_teacher_student_data")),
    "nll": ("Held-out negative log-likelihood, nats per token", ("nll",)),
    "bits": ("Held-out text, bits per byte", ("bits_per_byte",)),
    "answers": ("Final answers that are right", ("answer", "answer_calculator", "chain")),
    "rouge": ("ROUGE F-measure of greedy completions", ("rouge1", "rouge2", "rougeL")),
}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .25rem .75rem; text-align: left; vertical-align: top }
tr:nth-child(even) { background: #f4f4f4 } img { max-width: 100% } pre { white-space: pre-wrap }
"""


def write_report(run_dir: Path) -> Path:
    """Draws the run's metrics and writes plots/*.png and report.html.

    Returns:
      Path of the page.

    Raises:
      RunError: If the metrics are damaged or the page cannot be written.
      OSError: If a plot cannot be written.
    """
    lines = read_metrics(run_dir / "metrics.jsonl")
    config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    steps = [line for line in lines if line["kind"] == "train"]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    plots = run_dir / "plots"
    plots.mkdir(exist_ok=True)
    images = [_plot_loss(plots / "loss.png", steps)]
    for name, (title, curves) in _CURVES.items():
        present = [curve for curve in curves if evaluations and curve in evaluations[-1]["scores"]]
        if present:
            images.append(_plot_scores(plots / f"{name}.png", title, evaluations, present))
    page = run_dir / "report.html"
    write_text(page, _page(run_dir.name, config, steps, evaluations, images))
    return page


def _plot_loss(path: Path, steps: Sequence[dict[str, Any]]) -> Path:
    """Training loss with one colour for batches of the data and one for the student's own."""
    figure, axes = _figure("Training loss, nats per token")
    for on_policy, label in ((False, "data"), (True, "student's samples")):
        chosen = [line for line in steps if line["on_policy"] is on_policy]
        if chosen:
            numbers, losses = [line["step"] for line in chosen], [line["loss"] for line in chosen]
            (points,) = axes.plot(numbers, losses, ".", markersize=3, alpha=0.35)
            axes.plot(numbers, smoothed(losses), color=points.get_color(), label=label)
    return _save(figure, axes, path)


def _plot_scores(path: Path, title: str, evaluations: Sequence[dict[str, Any]], names: Sequence[str]) -> Path:
    """Scores over steps with their 95 % intervals."""
    figure, axes = _figure(title)
    numbers = [line["step"] for line in evaluations]
    for name in names:
        intervals = [line["scores"][name] for line in evaluations]
        (curve,) = axes.plot(numbers, [interval["mean"] for interval in intervals], "o-", markersize=4, label=name)
        low, high = ([interval[end] for interval in intervals] for end in ("low", "high"))
        axes.fill_between(numbers, low, high, alpha=0.15, color=curve.get_color())
    return _save(figure, axes, path)


def _figure(title: str) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # 30 MB, wanted only when the run has ended

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Figure, axes: Any, path: Path) -> Path:
    if axes.lines:
        axes.legend()
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, dpi=120, format="png")
    partial.replace(path)
    return path


def smoothed(values: Sequence[float], keep: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start at 0."""
    average, weight, smooth = 0.0, 0.0, []
    for value in values:
        average = keep * average + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        smooth.append(average / weight)
    return smooth


def _page(
    name: str,
    config: dict[str, Any],
    steps: Sequence[dict[str, Any]],
    evaluations: Sequence[dict[str, Any]],
    images: Sequence[Path],
) -> str:
    parts = [f"<!doctype html><meta charset=utf-8><title>{html.escape(name)}</title><style>{_STYLE}</style>"]
    parts.append(f"<h1>{html.escape(name)}</h1><p>{html.escape(_headline(config, steps))}</p>")
    parts += [_image(path) for path in images]
    if evaluations:
        parts += [_scores_table(evaluations), _samples_table(evaluations[-1])]
    rows = [[key, json.dumps(value, ensure_ascii=False)] for key, value in config.items()]
    parts.append("<h2>Configuration</h2>" + _table(["field", "value"], rows))
    return "\n".join(parts) + "\n"


def _headline(config: dict[str, Any], steps: Sequence[dict[str, Any]]) -> str:
    seconds, tokens = sum(line["seconds"] for line in steps), sum(line["completion_tokens"] for line in steps)
    share = sum(line["on_policy"] for line in steps) / max(len(steps), 1)
    return (
        f"{config['method']}: {len(steps)} steps of {config['batch_size']} rows, {tokens:,} completion tokens in "
        f"{seconds:,.0f} s of steps; {share:.0%} of the batches sampled from the student; losses averaged per "
        f"{config['normalization']}."
    )


def _scores_table(evaluations: Sequence[dict[str, Any]]) -> str:
    first, last = evaluations[0], evaluations[-1]
    rows = [
        [name, _interval(first["scores"].get(name)), _interval(interval)] for name, interval in last["scores"].items()
    ]
    rows.append(["perplexity", f"{first['perplexity']:.4g}", f"{last['perplexity']:.4g}"])
    heads = ["held-out score (95 % interval)", f"step {first['step']}", f"step {last['step']}"]
    return "<h2>Evaluation</h2>" + _table(heads, rows)


def _samples_table(evaluation: dict[str, Any]) -> str:
    rows = [[sample["prompt"], sample["reference"], sample["completion"]] for sample in evaluation["samples"]]
    return "<h2>Samples</h2>" + _table(["prompt", "reference", "student"], rows)


def _interval(interval: dict[str, float] | None) -> str:
    if interval is None:
        return ""
    return f"{interval['mean']:.4g} ({interval['low']:.4g} to {interval['high']:.4g})"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'
