"""Training runs side by side, one on each core: many small models train faster so than in turn on all of them.

Run folders are attar's own, so that each can be looked at with `attar compare`, and a job whose score is there is not
run again: the same command line goes on after any interruption.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.cli._compilation_cache import use_compilation_cache
from attar.cli._console import progress_bar
from attar.distill.config import TrainConfig
from attar.distill.data import Limits, load_examples
from attar.distill.evaluate import EvalSettings, Network, evaluate
from attar.distill.run_inputs import held_out_windows
from attar.distill.trainer import train
from attar.engine.checkpoint import load_model

EVALUATION_ROWS = 32


@dataclass(frozen=True)
class Scoring:
    """What a trained model is scored on.

    Attributes:
      data: Held-out file.
      teacher: Model folder to compare with; None compares with none.
      examples: How many of the file, the first ones.
      divergences: Of these, examples whose divergences are taken.
      max_new_tokens: Longest answer.
      max_tokens: Window of plain text.
      seed: Of the samples.
    """

    data: Path
    teacher: Path | None
    examples: int
    divergences: int | None
    max_new_tokens: int = 1
    max_tokens: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Job:
    """One run and the score of what it made.

    Attributes:
      config: What to train; None scores the model that stands in the folder.
      run: Run folder, or model folder where there is nothing to train.
      scoring: None only trains.
    """

    config: TrainConfig | None
    run: Path
    scoring: Scoring | None = None

    @property
    def model(self) -> Path:
        """The folder of the trained model."""
        return self.run if self.config is None else self.run / "student"

    @property
    def scores_path(self) -> Path:
        """Beside the run, one for each file of held-out data."""
        part = self.scoring.data.stem if self.scoring else "trained"
        return self.run.with_name(f"{self.run.name}.{part}.json")


def run_jobs(jobs: Iterable[Job], what: str) -> list[dict[str, Any]]:
    """Does the jobs that are not done, as many at a time as there are cores; returns their scores in order.

    Raises:
      Exception: What the first job to fail raised, after those that had begun.
    """
    ordered = list(jobs)
    missing = [job for job in ordered if not job.scores_path.exists()]
    if missing:
        _run_missing(missing, what)
    return [json.loads(job.scores_path.read_text()) for job in ordered]


def _run_missing(jobs: Sequence[Job], what: str) -> None:
    context = multiprocessing.get_context("spawn")  # JAX has threads, which a fork would not take along
    cores = context.Queue()
    usable = sorted(os.sched_getaffinity(0))
    shares = [{core} for core in usable] if len(jobs) > 1 else [set(usable)]
    for share in shares:
        cores.put(share)
    with progress_bar() as bar, ProcessPoolExecutor(len(shares), context, _take_core, (cores,)) as pool:
        task = bar.add_task(what, total=len(jobs), note="")
        for done in as_completed([pool.submit(run_job, job) for job in jobs]):
            try:
                bar.update(task, advance=1, note=done.result())
            except Exception:
                pool.shutdown(cancel_futures=True)
                raise


def _take_core(cores: multiprocessing.Queue[set[int]]) -> None:
    """Keeps a worker and all its threads to its share of the cores; runs before JAX counts them."""
    os.sched_setaffinity(0, cores.get())


def run_job(job: Job) -> str:
    """Trains and scores; returns the run's name."""
    use_compilation_cache()
    result: dict[str, Any] = {}
    if job.config is not None:
        train(job.config, job.run)
        result["completion_tokens"] = _completion_tokens(job.run / "metrics.jsonl")
    if job.scoring is not None:
        result |= score(job.model, job.scoring)
    part = job.scores_path.with_suffix(".part")
    part.write_text(json.dumps(result))
    part.replace(job.scores_path)
    return job.run.name


def score(folder: Path, scoring: Scoring) -> dict[str, Any]:
    """Means by name, the number of weights among them."""
    model = load_model(folder)
    teacher = scoring.teacher and load_model(scoring.teacher)
    windows = None if scoring.max_tokens is None else held_out_windows(scoring.max_tokens)
    limits = Limits(
        model.config.max_position_embeddings - scoring.max_new_tokens, scoring.max_new_tokens, windows=windows
    )
    data = load_examples(scoring.data, model.tokenizer, limits, "plain", scoring.examples)
    settings = EvalSettings(EVALUATION_ROWS, scoring.max_new_tokens, scoring.seed, 4, scoring.divergences)
    evaluation = evaluate(
        Network(model.params, model.config),
        teacher and Network(teacher.params, teacher.config),
        model.tokenizer,
        data,
        settings,
    )
    return {
        "scores": {name: interval.mean for name, interval in evaluation.scores.items()},
        "perplexity": evaluation.perplexity,
        "parameters": model.config.num_parameters,
        "samples": [[sample.prompt, sample.completion] for sample in evaluation.samples],
    }


def _completion_tokens(metrics: Path) -> int:
    """Tokens that the run learnt from, in all."""
    entries = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    return sum(entry["completion_tokens"] for entry in entries if entry["kind"] == "train")
