"""What on-policy distillation buys, and which divergence: every arm from one start, over seeds, in pairs.

    python -m examples.gkd_claims --task arithmetic --seeds 5          word problems, chains of calculation
    python -m examples.gkd_claims --task package_summaries --seeds 5   one line for a Debian package
    python -m examples.gkd_claims --task package_translations --pair en-de --seeds 3

A teacher of some million weights is trained on the whole training part. A student a fifth its size is trained on few
gold answers (`start`), and goes on from there by each arm, with the same prompts, batch size and number of steps:

    sft                   on with the gold answers
    seqkd                 on the teacher's greedy answers to the prompts                      Kim and Rush, 2016
    supervised D          D to the teacher on the gold answers (lambda 0)
    on-policy D           D to the teacher on the student's own answers (lambda 1)            GKD, arXiv:2306.13649
    mixed JSD             each batch of one kind or the other (lambda 0.5): the defaults of `attar distill`

for D forward and reverse KL.

The metric is fixed beforehand: the greedy score on held-out prompts, which for `arithmetic` is the share of right final
answers with a calculator at hand, for `package_summaries` ROUGE-L, for `package_translations` corpus BLEU. Each arm's
learning rate is chosen among the same ones on validation prompts, with a seed that is not reported. All arms stay in
the table, with both divergences, the samples' diversity and the tokens learnt from: what wins by one may lose by
another.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.command import count, run_command

from attar.cli._console import make_table, out
from attar.distill.config import TrainConfig
from attar.distill.divergences import DivergenceName
from attar.distill.recipes import arithmetic, package_summaries, package_translations
from attar.distill.write_completions import WriteConfig, write_completions
from examples.arms import EVALUATION_ROWS, Job, Scoring, run_jobs
from examples.paired import gain_ratio, mean_over_seeds, spell
from examples.small_models import Shape, read_rows, write_rows, write_tokenizer, write_untrained

DIVERGENCES: dict[str, DivergenceName] = {"forward KL": "forward_kl", "reverse KL": "reverse_kl", "JSD": "jsd"}
PLACES = {"supervised": 0.0, "on-policy": 1.0, "mixed": 0.5}
ARMS = [
    *((place, name) for place in ("supervised", "on-policy") for name in ("forward KL", "reverse KL")),
    ("mixed", "JSD"),
]
TUNING_SEED = 1000
START = "start"
TEACHER, STUDENT = Shape(160, 5), Shape(96, 3)


@dataclass(frozen=True)
class Task:
    """Sizes, and the metric.

    Attributes:
      metric: Name of a score of `attar eval`.
      percent: Whether it is a share, to be shown as per cent.
      teacher_examples: Of the training part, the first ones; `gold_examples`, for the students, are the first of these.
      completion_tokens: Longest answer that is learnt or sampled.
      scored: Test prompts that are answered; `tuning_scored`, validation prompts.
      divergences_of: Prompts on which divergences are taken.
    """

    metric: str
    vocab_size: int
    context: int
    completion_tokens: int
    percent: bool = True
    teacher: Shape = TEACHER
    student: Shape = STUDENT
    teacher_examples: int = 20000
    gold_examples: int = 2000
    teacher_steps: int = 1200
    teacher_rate: float = 2e-3
    start_steps: int = 800
    start_rate: float = 4e-3
    steps: int = 150
    batch_size: int = 16
    rates: tuple[float, ...] = (5e-4, 1.5e-3, 4.5e-3)
    scored: int = 500
    tuning_scored: int = 200
    divergences_of: int = 48


TASKS = {
    "arithmetic": Task("answer_calculator", vocab_size=768, context=320, completion_tokens=96),
    "package_summaries": Task("rougeL", vocab_size=2048, context=192, completion_tokens=24),
    "package_translations": Task("bleu", vocab_size=2048, context=192, completion_tokens=64, percent=False),
}


def make_data(task: str, folder: Path, pair: package_translations.LanguagePair) -> None:
    """Builds the recipe's files, unless they are there."""
    if (folder / "recipe.json").exists():
        return
    if task == "arithmetic":
        arithmetic.build(folder, arithmetic.ArithmeticConfig(train=20000, held_out=500, max_steps=3))
    elif task == "package_summaries":
        package_summaries.build(folder, sample=False, max_words=40)
    else:
        package_translations.build(folder, pair=pair, max_words=20)


def _pairs(path: Path, count: int) -> Iterator[dict[str, str]]:
    """Prompts and completions of a file's first rows, without what else the recipe tells of them."""
    return ({"prompt": row["prompt"], "completion": row["completion"]} for row in read_rows(path, count))


class Claims:
    """The runs of one task, in one folder."""

    def __init__(self, folder: Path, name: str, task: Task, seeds: int, without: Sequence[str] = ()) -> None:
        self.folder, self.name, self.task, self.seeds = folder, name, task, seeds
        self.data, self.tokenizer = folder / "data", folder / "tokenizer"
        self.gold = folder / "gold.jsonl"
        self.arms: dict[str, dict[str, Any]] = {"sft": {"method": "sft"}, "seqkd": {"method": "sft"}}
        for place, spelled in ARMS:
            gkd = {"method": "gkd", "on_policy_fraction": PLACES[place], "divergence": DIVERGENCES[spelled]}
            self.arms[f"{place} {spelled}"] = gkd
        for name_of_arm in without:
            del self.arms[name_of_arm]

    def config(self, seed: int, rate: float, steps: int, student: Path, data: Path, **arm: Any) -> TrainConfig:
        """A run's settings; what all share stands here."""
        task = self.task
        return TrainConfig(
            data=str(data),
            student=str(student),
            prompt_format="plain",
            max_new_tokens=task.completion_tokens,
            steps=steps,
            batch_size=task.batch_size,
            learning_rate=rate,
            warmup_steps=steps // 20,
            schedule="cosine",
            prompt_buckets=2,
            checkpoint_every=200,
            keep_checkpoints=1,
            seed=seed,
            **arm,
        )

    def scoring(self, split: str) -> Scoring:
        """Greedy score and divergences to the teacher on a held-out part."""
        return self._scoring(split, self.teacher.model)

    def _scoring(self, split: str, teacher: Path | None) -> Scoring:
        task = self.task
        scored = task.scored if split == "test" else task.tuning_scored
        return Scoring(self.data / f"{split}.jsonl", teacher, scored, task.divergences_of, task.completion_tokens)

    @property
    def teacher(self) -> Job:
        """The teacher's training."""
        task, untrained = self.task, self.folder / "untrained" / "teacher"
        config = self.config(
            0, task.teacher_rate, task.teacher_steps, untrained, self.folder / "teacher.jsonl", method="sft"
        )
        return Job(config, self.folder / "teacher", self._scoring("test", None))

    def start(self, seed: int, split: str) -> Job:
        """The weak student that a seed's arms go on from."""
        task, untrained = self.task, self.folder / "untrained" / f"student{seed}"
        config = self.config(seed, task.start_rate, task.start_steps, untrained, self.gold, method="sft")
        return Job(config, self.folder / f"seed{seed}" / START, self.scoring(split))

    def arm(self, name: str, rate: float, seed: int, split: str) -> Job:
        """One arm's run."""
        options = dict(self.arms[name])
        if options["method"] != "sft":
            options["teacher"] = str(self.teacher.model)
        data = self.folder / "seqkd.jsonl" if name == "seqkd" else self.gold
        student = self.start(seed, split).model
        run = self.folder / f"seed{seed}" / f"{name.replace(' ', '_')}_{rate:g}"
        return Job(self.config(seed, rate, self.task.steps, student, data, **options), run, self.scoring(split))

    def prepare(self) -> dict[str, Any]:
        """Vocabulary, untrained models, teacher and its answers; returns the teacher's scores."""
        task, train = self.task, self.data / "train.jsonl"
        write_rows(self.folder / "teacher.jsonl", _pairs(train, task.teacher_examples))
        write_rows(self.gold, read_rows(self.folder / "teacher.jsonl", task.gold_examples))
        texts = (row["prompt"] + row["completion"] for row in read_rows(train, task.teacher_examples))
        write_tokenizer(texts, self.tokenizer, task.vocab_size)
        shapes = {"teacher": (task.teacher, 0)} | {
            f"student{seed}": (task.student, seed) for seed in (*range(self.seeds), TUNING_SEED)
        }
        for name, (shape, seed) in shapes.items():
            config = shape.to_config(task.vocab_size, task.context)
            write_untrained(self.folder / "untrained" / name, config, self.tokenizer, seed)
        (scores,) = run_jobs([self.teacher], "teacher")
        if "seqkd" in self.arms and not (self.folder / "seqkd.jsonl").exists():
            asked = WriteConfig(
                (str(self.gold),), str(self.teacher.model), temperature=0.0, max_new_tokens=task.completion_tokens,
                prompt_format="plain", batch_size=EVALUATION_ROWS,
            )  # fmt: skip
            write_completions(asked, self.folder / "seqkd.jsonl")
        return scores

    def tune(self) -> dict[str, float]:
        """Each arm's best learning rate on validation prompts, all arms with equally many tries."""
        run_jobs([self.start(TUNING_SEED, "validation")], "tuning: start")
        tried = [(name, rate) for name in self.arms for rate in self.task.rates]
        scores = run_jobs([self.arm(*pair, TUNING_SEED, "validation") for pair in tried], "tuning")
        found = {pair: score["scores"][self.task.metric] for pair, score in zip(tried, scores, strict=True)}
        return {name: max(self.task.rates, key=lambda rate: found[name, rate]) for name in self.arms}

    def compare(self, rates: dict[str, float]) -> dict[str, list[dict[str, Any]]]:
        """Scores on test prompts by arm, one for each seed."""
        starts = run_jobs([self.start(seed, "test") for seed in range(self.seeds)], "starts")
        pairs = [(name, seed) for seed in range(self.seeds) for name in self.arms]
        scores = run_jobs([self.arm(name, rates[name], seed, "test") for name, seed in pairs], "arms")
        by_arm = {
            name: [score for (arm, _), score in zip(pairs, scores, strict=True) if arm == name] for name in self.arms
        }
        return {START: starts, **by_arm}


def report(
    claims: Claims, teacher: dict[str, Any], rates: dict[str, float], found: dict[str, list[dict[str, Any]]]
) -> None:
    """The tables: every arm, then on-policy against supervised, then the ratio of gains."""
    task, scale = claims.task, 100 if claims.task.percent else 1

    def metric(arm: str) -> list[float]:
        return [scale * result["scores"][task.metric] for result in found[arm]]

    def mean(arm: str, name: str) -> float:
        return statistics.mean(result["scores"][name] for result in found[arm])

    def gains_of(values: list[float]) -> list[float]:
        return [value - first for value, first in zip(values, metric(START), strict=True)]

    rows = []
    for arm in found:
        gains = gains_of(metric(arm))
        rows.append(
            [
                arm,
                f"{rates[arm]:g}" if arm in rates else "",
                f"{statistics.mean(metric(arm)):.1f}",
                spell(mean_over_seeds(gains), 1) if arm != START else "",
                f"{mean(arm, 'kl_teacher_student_data'):.3f}",
                f"{mean(arm, 'kl_student_teacher_samples'):.3f}",
                f"{mean(arm, 'distinct2_samples'):.3f}",
                f"{statistics.mean(result['completion_tokens'] for result in found[arm]) / 1000:.0f}k",
            ]
        )
    columns = ["arm", "rate", task.metric, "over start", "KL(T‖S) data", "KL(S‖T) samples", "distinct-2", "tokens"]
    size = found[START][0]["parameters"]
    title = (
        f"{claims.name}, {claims.seeds} seeds: teacher of {teacher['parameters'] / 1e6:.2f}M weights scores "
        f"{scale * teacher['scores'][task.metric]:.1f}; students have {size / 1e6:.2f}M"
    )
    out.print(make_table(title, columns, rows))
    rows = []
    for place, divergence in ARMS:
        if place != "on-policy":
            continue
        own, supervised = metric(f"{place} {divergence}"), metric(f"supervised {divergence}")
        more = [value - other for value, other in zip(own, supervised, strict=True)]
        gains, base = gains_of(own), gains_of(supervised)
        wins = f"{sum(value > 0 for value in more)} of {len(more)}"
        rows.append([f"{place} {divergence}", spell(mean_over_seeds(more), 1), wins, spell(gain_ratio(gains, base))])
    columns = ["arm", f"{task.metric} over supervised", "seeds ahead", "gain over start / supervised's"]
    out.print(make_table("The same divergence on the student's own answers and on given ones", columns, rows))
    out.print("GKD's paper has gains of 2.1 (XSum), 1.7 (WMT en-de) and 1.9 (GSM8K) times those of its baselines.")


def main() -> int:
    """Runs what is missing, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="arithmetic")
    parser.add_argument("--pair", choices=("en-de", "en-fr"), default="en-de", help="of package_translations")
    parser.add_argument("--seeds", type=count, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/gkd_claims"))
    parser.add_argument("--quick", action="store_true", help="a few steps of each arm, to see it run")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    name = f"package_translations {chosen.pair}" if chosen.task == "package_translations" else chosen.task
    folder, task = chosen.out / name.replace(" ", "_"), TASKS[chosen.task]
    if chosen.quick:
        folder = folder.with_name(folder.name + "_quick")
        task = replace(
            task, teacher_examples=200, gold_examples=64, teacher_steps=4, start_steps=4, steps=2, rates=(1e-3,),
            scored=8, tuning_scored=8, divergences_of=8,
        )  # fmt: skip
    make_data(chosen.task, folder / "data", chosen.pair)
    # A teacher of four steps ends no answer that could be learnt.
    claims = Claims(folder, name, task, chosen.seeds, without=("seqkd",) if chosen.quick else ())
    teacher = claims.prepare()
    rates = claims.tune()
    found = claims.compare(rates)
    if chosen.json:
        print(json.dumps({"task": name, "teacher": teacher, "rates": rates, "results": found}))
    else:
        report(claims, teacher, rates, found)
    return 0


if __name__ == "__main__":
    run_command(main)
