"""From SmolLM2-135M-Instruct to a student of at most 60M weights, on a CPU, over a night.

```
attar pull smollm2                                                     the teacher
attar data package_summaries                                           texts that anyone can rebuild
attar distill --keep-layers ... --method gkd --lambda 0                prunes the teacher, then brings back what the
                                                                       cut lost, on texts: every position is a target
attar distill --student recovered --method gkd --lambda 0.5            then on the student's own answers as well
```
Each command's line is printed before it runs; what is there already is not done again, and a run that was stopped goes
on, so the same command line continues after any interruption. The KL to the teacher on held-out texts, from right after
pruning to the end, becomes a table and a plot.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.command import count, run_command
from rich.console import Console
from rich.table import Table

from attar.distill.run_folder import read_metrics

console = Console(highlight=False)

DESCRIBE = "Describe the software that is summarised as: {summary}"
SUMMARISE = "Summarise in one line:\n{document}"
_PROMPT_END = "\n\nOne-line summary:"
# Curves of the plot: the name of a score and what it is.
CURVES = {
    "kl_teacher_student_data": "KL(teacher ‖ student), held-out texts",
    "kl_student_teacher_samples": "KL(student ‖ teacher), the student's own answers",
}


@dataclass(frozen=True)
class Plan:
    """Sizes of the student, and how long it trains. The two stages share the learning rate's peak.

    Attributes:
      max_words: Longest description that is learnt.
      recover_steps: Steps on texts, right after pruning, `packed_rows` rows of several texts each.
      gkd_steps: Steps of which half are on the student's own answers, `batch_size` each.
    """

    layers: int = 20
    hidden: int = 384
    intermediate: int = 1024
    kv_heads: int = 2
    max_words: int = 90
    max_new_tokens: int = 96
    recover_steps: int = 3000
    gkd_steps: int = 600
    packed_rows: int = 4
    batch_size: int = 8
    learning_rate: float = 1e-3
    eval_every: int = 50
    eval_examples: int = 16
    seed: int = 0

    @property
    def warmup_steps(self) -> int:
        """Enough for Adam's second moments to settle."""
        return max(1, min(50, self.recover_steps // 10))


def main() -> int:
    """Runs what is left of the recipe, then prints and plots the KL."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("smollm2_student"), help="folder (default: smollm2_student)")
    parser.add_argument("--steps", type=count, default=Plan.recover_steps, help="steps on texts (default: %(default)s)")
    parser.add_argument(
        "--gkd-steps", type=int, default=Plan.gkd_steps, help="then on answers, 0 for none (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see the whole way in minutes")
    parser.add_argument("--report", action="store_true", help="only show how far the runs in --out have come")
    chosen = parser.parse_args()
    if chosen.gkd_steps < 0:
        parser.error(f"argument --gkd-steps: must be at least 0, got {chosen.gkd_steps}")
    if chosen.report:
        report(chosen.out)
        return 0
    started = time.perf_counter()
    plan = Plan(recover_steps=chosen.steps, gkd_steps=chosen.gkd_steps, seed=chosen.seed)
    if chosen.quick:
        plan = replace(plan, recover_steps=24, gkd_steps=2, eval_every=12, eval_examples=4, max_words=40)
    chosen.out.mkdir(parents=True, exist_ok=True)
    prepare(chosen.out, plan)
    train(chosen.out, plan)
    report(chosen.out)
    console.print(f"{(time.perf_counter() - started) / 60:.1f} minutes")
    return 0


def prepare(out: Path, plan: Plan) -> None:
    """The teacher, and from the recipe's pairs the texts."""
    attar("pull", "smollm2", done=out / "pulled")
    (out / "pulled").touch()
    attar("data", "package_summaries", "--out", out / "packages", done=out / "packages" / "recipe.json")
    for split in ("train", "validation"):
        path = out / "data" / f"{split}.jsonl"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            rows = list(make_rows(out / "packages" / f"{split}.jsonl", plan.max_words))
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_rows(pairs: Path, max_words: int) -> Iterator[dict[str, str]]:
    """Requests for a description, whose answers are long, and every fifth time for a summary."""
    for index, line in enumerate(pairs.read_text(encoding="utf-8").splitlines()):
        pair = json.loads(line)
        document, summary = pair["prompt"].removesuffix(_PROMPT_END), pair["completion"].strip()
        if len(document.split()) > max_words:
            continue
        if index % 5 == 0:
            yield {"prompt": SUMMARISE.format(document=document), "completion": summary}
        else:
            yield {"prompt": DESCRIBE.format(summary=summary), "completion": document}


def train(out: Path, plan: Plan) -> None:
    """Prunes and recovers; then goes on with the student's own answers."""
    common = [
        "--teacher", "smollm2", "--data", out / "data", "--method", "gkd", "--schedule", "cosine",
        "--max-new-tokens", plan.max_new_tokens, "--checkpoint-every", 50,
        "--eval-every", plan.eval_every, "--eval-examples", plan.eval_examples, "--seed", plan.seed,
    ]  # fmt: skip
    cut = [
        "--keep-layers", plan.layers, "--keep-hidden", plan.hidden, "--keep-intermediate", plan.intermediate,
        "--keep-kv-heads", plan.kv_heads,
    ]  # fmt: skip
    recover = ["--lambda", 0, "--divergence", "forward_kl", "--normalization", "token"]
    recover += ["--pack", "--batch-size", plan.packed_rows]
    recover += ["--learning-rate", plan.learning_rate, "--warmup-steps", plan.warmup_steps]
    attar(
        "distill", *common, *cut, *recover, "--steps", plan.recover_steps, "--out", out / "recovered",
        done=out / "recovered" / "report.html",
    )  # fmt: skip
    if plan.gkd_steps == 0:
        return
    answers = ["--student", out / "recovered", "--batch-size", plan.batch_size, "--prompt-buckets", 1]
    answers += ["--lambda", 0.5, "--divergence", "jsd", "--beta", 0.5]
    answers += ["--learning-rate", plan.learning_rate / 4, "--warmup-steps", max(1, plan.gkd_steps // 20)]
    attar(
        "distill", *common, *answers, "--steps", plan.gkd_steps, "--out", out / "student",
        done=out / "student" / "report.html",
    )  # fmt: skip


def attar(*arguments: object, done: Path) -> None:
    """Runs one command unless its result is there."""
    words = ["attar", *map(str, arguments)]
    if done.exists():
        console.print(f"[dim]$ {shlex.join(words)}   (done before)[/]", soft_wrap=True)
        return
    console.print(f"[bold]$ {shlex.join(words)}[/]", soft_wrap=True)
    finished = subprocess.run([sys.executable, "-m", "attar.cli", *words[1:]], check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


@dataclass(frozen=True)
class Point:
    """One evaluation.

    Attributes:
      step: Over both stages.
      minutes: Of training before it, evaluations not counted.
      scores: Means by name.
    """

    step: int
    minutes: float
    scores: dict[str, float]


def read_curve(*runs: Path) -> list[Point]:
    """Evaluations of the runs one after the other; a later run's first is the earlier one's last."""
    points: list[Point] = []
    steps, seconds = 0, 0.0
    for run in runs:
        first = steps
        for entry in read_metrics(run / "metrics.jsonl"):
            if entry["kind"] == "train":
                seconds += entry["seconds"]
                steps = first + entry["step"]
            elif entry["kind"] == "eval" and not (points and entry["step"] == 0):
                scores = {name: score["mean"] for name, score in entry["scores"].items()}
                points.append(Point(first + entry["step"], seconds / 60, scores))
    return points


def report(out: Path) -> None:
    """The table and the plot of the KL."""
    points = read_curve(*begun_runs(out))
    if not points:
        sys.exit(f"{out}: no run here has been evaluated yet; run the same command without --report")
    table = Table("step", "minutes", *CURVES.values(), "agreement", title="SmolLM2-135M-Instruct → student")
    for point in thinned(points, 16):
        figures = [f"{point.scores[name]:.3f}" for name in (*CURVES, "agreement_data")]
        table.add_row(str(point.step), f"{point.minutes:.0f}", *figures)
    console.print(table)
    first, last = (point.scores["kl_teacher_student_data"] for point in (points[0], points[-1]))
    console.print(
        f"KL on held-out texts: {first:.3f} right after pruning, {last:.3f} at the end of this ({last / first:.0%})"
    )
    plot(points, out / "kl.png")
    console.print(f"wrote {out / 'kl.png'}", soft_wrap=True)
    finished = [run for run in begun_runs(out) if (run / "report.html").is_file()]
    if finished:
        console.print(f"talk to it: attar chat {finished[-1]}", soft_wrap=True)


def begun_runs(out: Path) -> list[Path]:
    """The stages that have begun, in order."""
    return [run for run in (out / "recovered", out / "student") if (run / "metrics.jsonl").is_file()]


def thinned(points: list[Point], count: int) -> list[Point]:
    """At most so many, the first and the last among them."""
    if len(points) <= count:
        return points
    return [points[round(i * (len(points) - 1) / (count - 1))] for i in range(count)]


def plot(points: list[Point], path: Path) -> None:
    """KL over minutes of training, the axis of values logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in CURVES.items():
        axes.plot([point.minutes for point in points], [point.scores[name] for point in points], ".-", label=label)
    axes.set(xlabel="minutes of training on a CPU", ylabel="nats per token", yscale="log")
    axes.set_title("a student cut from SmolLM2-135M-Instruct", loc="left")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run_command(main)
