"""Pre-training from a teacher's distribution against pre-training from the texts' own next tokens, at three sizes.

    python -m examples.pretraining_claims --seeds 5

The claim is Gemma 2's (arXiv:2408.00118, section 3.2): a student that learns the teacher's distribution ends with a
lower perplexity on held-out texts than one that learns the next token, and the gain does not shrink with the student's
size. In small: a teacher, and students of three sizes, of which the largest is a fifth of it, over descriptions of
Debian packages. Both arms see the same texts in the same order for the same steps, from the same random weights; each
arm's learning rate is chosen at each size among the same ones, on validation texts, with a seed that is not reported.
The teacher's distribution is stored once (`attar label`: the likeliest tokens of each position and the mass of the
rest) and serves every run. What the teacher costs is not counted, as it is not in the paper. The metric is perplexity
of real texts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.command import count, run_command

from attar.cli._console import make_table, out, progress_bar
from attar.distill.config import TrainConfig
from attar.distill.label import LabelConfig, label
from attar.distill.recipes import package_summaries
from examples.arms import Job, Scoring, run_jobs
from examples.paired import mean_over_seeds, spell
from examples.small_models import Shape, read_rows, write_rows, write_tokenizer, write_untrained

TUNING_SEED = 1000
ARMS = ("one-hot", "distilled")
TEACHER, STUDENTS = Shape(256, 6), (Shape(64, 2), Shape(96, 2), Shape(128, 3))
_PROMPT_END = "\n\nOne-line summary:"


@dataclass(frozen=True)
class Plan:
    """Sizes.

    Attributes:
      students: From the smallest on.
      window: Tokens of a row.
      teacher_texts: Texts that the teacher learns; `texts`, for the students, are others.
      targets: Tokens that are kept of the teacher's distribution at each position.
    """

    teacher: Shape = TEACHER
    students: tuple[Shape, ...] = STUDENTS
    vocab_size: int = 2048
    window: int = 64
    teacher_texts: int = 24000
    texts: int = 12000
    held_out: int = 400
    teacher_steps: int = 1500
    steps: int = 400
    batch_size: int = 32
    teacher_rate: float = 2e-3
    rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3)
    targets: int = 64


class Claims:
    """All runs, in one folder."""

    def __init__(self, folder: Path, plan: Plan, seeds: int) -> None:
        self.folder, self.plan, self.seeds = folder, plan, seeds
        self.tokenizer, self.targets = folder / "tokenizer", folder / "targets"
        self.texts = folder / "texts.jsonl"

    def config(self, seed: int, rate: float, steps: int, student: Path, data: Path, **arm: Any) -> TrainConfig:
        """A run's settings; what all share stands here."""
        return TrainConfig(
            data=str(data),
            student=str(student),
            max_tokens=self.plan.window,
            max_new_tokens=self.plan.window,  # texts have no answers, but the context must hold so many
            on_policy_fraction=0.0,
            normalization="token",
            steps=steps,
            batch_size=self.plan.batch_size,
            learning_rate=rate,
            warmup_steps=steps // 20,
            schedule="cosine",
            checkpoint_every=steps,
            keep_checkpoints=1,
            seed=seed,
            **arm,
        )

    @property
    def teacher(self) -> Job:
        """The teacher's training, on texts of its own."""
        plan, data = self.plan, self.folder / "teacher.jsonl"
        untrained = self.folder / "untrained" / "teacher"
        config = self.config(0, plan.teacher_rate, plan.teacher_steps, untrained, data, method="sft")
        return Job(config, self.folder / "teacher", self.scoring("test"))

    def scoring(self, split: str) -> Scoring:
        """Perplexity on held-out texts."""
        return Scoring(self.folder / f"{split}.jsonl", None, self.plan.held_out, None, max_tokens=self.plan.window)

    def run(self, size: int, arm: str, rate: float, seed: int, split: str) -> Job:
        """One student's training."""
        learnt = {"method": "sft"} if arm == "one-hot" else {"method": "pretrain", "targets": str(self.targets)}
        untrained = self.folder / "untrained" / f"size{size}_seed{seed}"
        config = self.config(seed, rate, self.plan.steps, untrained, self.texts, **learnt)
        return Job(config, self.folder / f"seed{seed}" / f"size{size}_{arm}_{rate:g}", self.scoring(split))

    def prepare(self) -> dict[str, Any]:
        """Texts, vocabulary, untrained models, the teacher and its targets; returns the teacher's scores."""
        plan, data = self.plan, self.folder / "data"
        if not (data / "recipe.json").exists():
            package_summaries.build(data, sample=False)
        for split in ("validation", "test"):
            write_rows(self.folder / f"{split}.jsonl", self._texts(data / f"{split}.jsonl", 0, plan.held_out))
        train = data / "train.jsonl"
        write_rows(self.texts, self._texts(train, 0, plan.texts))
        write_rows(self.folder / "teacher.jsonl", self._texts(train, plan.texts, plan.texts + plan.teacher_texts))
        write_tokenizer((row["text"] for row in read_rows(self.texts)), self.tokenizer, plan.vocab_size)
        shapes = {"teacher": (plan.teacher, 0)} | {
            f"size{size}_seed{seed}": (shape, seed)
            for size, shape in enumerate(plan.students)
            for seed in (*range(self.seeds), TUNING_SEED)
        }
        for name, (shape, seed) in shapes.items():
            config = shape.to_config(plan.vocab_size, 2 * plan.window)
            write_untrained(self.folder / "untrained" / name, config, self.tokenizer, seed)
        (scores,) = run_jobs([self.teacher], "teacher")
        self._label()
        return scores

    def _texts(self, path: Path, start: int, stop: int) -> Iterator[dict[str, str]]:
        for index, row in enumerate(read_rows(path, stop)):
            if index >= start:
                yield {"text": row["prompt"].removesuffix(_PROMPT_END)}

    def _label(self) -> None:
        """Scores the students' texts with the teacher once."""
        asked = LabelConfig(
            (str(self.texts),), str(self.teacher.model), tokens_per_position=self.plan.targets,
            max_tokens=self.plan.window, max_new_tokens=self.plan.window, batch_size=64,
        )  # fmt: skip
        with progress_bar() as bar:
            task = bar.add_task("teacher's targets", total=None, note="")
            label(asked, self.targets, lambda done, of: bar.update(task, completed=done, total=of))

    def tune(self) -> dict[tuple[int, str], float]:
        """The best learning rate of each size and arm on validation texts, all with equally many tries."""
        sizes, rates = range(len(self.plan.students)), self.plan.rates
        tried = [(size, arm, rate) for size in sizes for arm in ARMS for rate in rates]
        scores = run_jobs([self.run(*which, TUNING_SEED, "validation") for which in tried], "tuning")
        found = {which: score["perplexity"] for which, score in zip(tried, scores, strict=True)}
        return {(size, arm): min(rates, key=lambda r: found[size, arm, r]) for size in sizes for arm in ARMS}

    def compare(self, rates: dict[tuple[int, str], float]) -> dict[tuple[int, str], list[dict[str, Any]]]:
        """Scores on test texts by size and arm, one for each seed."""
        pairs = [(size, arm, seed) for seed in range(self.seeds) for size, arm in rates]
        scores = run_jobs([self.run(s, arm, rates[s, arm], seed, "test") for s, arm, seed in pairs], "students")
        by_arm: dict[tuple[int, str], list[dict[str, Any]]] = {which: [] for which in rates}
        for (size, arm, _), score in zip(pairs, scores, strict=True):
            by_arm[size, arm].append(score)
        return by_arm


def report(
    claims: Claims,
    teacher: dict[str, Any],
    rates: dict[tuple[int, str], float],
    found: dict[tuple[int, str], list[dict[str, Any]]],
) -> None:
    """One line for each size."""
    rows = []
    for size in range(len(claims.plan.students)):
        perplexity = {arm: [score["perplexity"] for score in found[size, arm]] for arm in ARMS}
        both = list(zip(perplexity["distilled"], perplexity["one-hot"], strict=True))
        percent = mean_over_seeds([100 * (distilled / one_hot - 1) for distilled, one_hot in both])
        rows.append(
            [
                f"{found[size, 'one-hot'][0]['parameters'] / 1e3:.0f}k",
                *(f"{statistics.mean(perplexity[arm]):.2f}" for arm in ARMS),
                f"{spell(percent, 1)} %",
                f"{sum(distilled < one_hot for distilled, one_hot in both)} of {claims.seeds}",
                " / ".join(f"{rates[size, arm]:g}" for arm in ARMS),
            ]
        )
    columns = ["student", *(f"{arm}, perplexity" for arm in ARMS), "difference", "seeds ahead", "rates"]
    title = (
        f"package descriptions, {claims.seeds} seeds: teacher of {teacher['parameters'] / 1e6:.2f}M weights has "
        f"perplexity {teacher['perplexity']:.2f}"
    )
    out.print(make_table(title, columns, rows))
    out.print("Gemma 2's report has 23 → 21, 19 → 17 and 17 → 15 at 200M, 400M and 1B weights (-8.7, -10.5, -11.8 %).")


def main() -> int:
    """Runs what is missing, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=count, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining_claims"))
    parser.add_argument("--quick", action="store_true", help="a few steps of each run, to see it run")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    plan, folder = Plan(), chosen.out
    if chosen.quick:
        folder = folder.with_name(folder.name + "_quick")
        plan = replace(
            plan, teacher_texts=200, texts=200, held_out=16, teacher_steps=4, steps=2, rates=(4e-3,), batch_size=8
        )
    claims = Claims(folder, plan, chosen.seeds)
    teacher = claims.prepare()
    rates = claims.tune()
    found = claims.compare(rates)
    if chosen.json:
        by_name = {f"{size} {arm}": scores for (size, arm), scores in found.items()}
        print(
            json.dumps(
                {"teacher": teacher, "rates": {f"{s} {a}": r for (s, a), r in rates.items()}, "results": by_name}
            )
        )
    else:
        report(claims, teacher, rates, found)
    return 0


if __name__ == "__main__":
    run_command(main)
