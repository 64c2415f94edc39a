"""Compares training runs in pairs on the held-out examples that their evaluations share.

Two runs answer the same prompts, and how hard a prompt is moves both scores alike. So the difference of two runs is
judged over examples: on each resample of them both runs are scored, and the differences are what is counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from attar.distill.bootstrap import Difference, Figure, figure_difference
from attar.distill.example_results import ExampleResult, figures, read_results, results_path
from attar.distill.run_folder import read_metrics

# Scores whose unit is the token, and of these the ones that are taken against the teacher.
_AGAINST_TEACHER = ("kl_", "agreement_")
_PER_TOKEN = ("nll", "perplexity", *_AGAINST_TEACHER)


class CompareError(ValueError):
    """Runs that cannot be compared; the message names the folder and the remedy."""


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says of its run.

    Attributes:
      folder: The run folder.
      config: The resolved configuration.
      steps: Metrics of the training steps, in order.
      evaluations: Metrics of the evaluations, in order; at least one.
    """

    folder: Path
    config: dict[str, Any]
    steps: tuple[dict[str, Any], ...]
    evaluations: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Row:
    """One score of every run, over the examples on which all have it.

    Attributes:
      name: Of the score.
      values: One for each run.
      differences: Of each run but the first, to the first.
    """

    name: str
    values: tuple[float, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs compared in pairs.

    Attributes:
      steps: Of each run's evaluation.
      num_examples: Of each run's evaluation.
      num_shared: Examples that all runs were evaluated on.
      rows: One for each score that all runs have.
      notes: Differences between the runs that change what the figures mean, one sentence each.
    """

    steps: tuple[int, ...]
    num_examples: tuple[int, ...]
    num_shared: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def read_run(folder: Path) -> RunRecord:
    """Reads a run folder, which may belong to a run in progress.

    Raises:
      CompareError: If the folder is no run, or its run has not been evaluated.
      RunError: If its metrics are damaged.
    """
    config_path, metrics_path = folder / "config.json", folder / "metrics.jsonl"
    if not (config_path.is_file() and metrics_path.is_file()):
        raise CompareError(f"{folder}: is no run folder (no config.json and metrics.jsonl); give the --out of a run")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CompareError(f"{config_path}: is not valid JSON: {error}") from None
    lines = read_metrics(metrics_path)
    evaluations = tuple(line for line in lines if line["kind"] == "eval")
    if not evaluations:
        raise CompareError(f"{folder}: has no evaluation to compare; train with --eval-data, or wait for the first")
    return RunRecord(folder, config, tuple(line for line in lines if line["kind"] == "train"), evaluations)


def compare_runs(runs: Sequence[RunRecord], step: int | None = None) -> Comparison:
    """Scores all runs on the examples they share, and each run's difference to the first.

    Args:
      runs: Two or more.
      step: Of the evaluations; None takes the last of each run.

    Raises:
      CompareError: If the held-out sets differ, a run was not evaluated at the step, or fewer than two examples are
        shared.
      RunError: If a file of results cannot be read.
    """
    if len(runs) < 2:
        raise CompareError(f"a comparison needs at least two runs, got {len(runs)}")
    _check_held_out(runs)
    steps = tuple(_chosen_step(run, step) for run in runs)
    results = [_results(run, chosen) for run, chosen in zip(runs, steps, strict=True)]
    shared = [key for key in results[0] if all(key in found for found in results)]
    if len(shared) < 2:
        raise CompareError(f"a comparison needs at least two shared examples, got {len(shared)}")
    by_run = [figures([found[key] for key in shared]) for found in results]
    excluded = _incomparable(runs)
    names = [name for name in by_run[0] if all(name in found for found in by_run) and not name.startswith(excluded)]
    rows = [_row(name, [found[name] for found in by_run]) for name in names]
    return Comparison(
        steps,
        tuple(len(found) for found in results),
        len(shared),
        tuple(row for row in rows if row is not None),
        _notes(runs, len(shared)),
    )


def _check_held_out(runs: Sequence[RunRecord]) -> None:
    first, *others = runs
    wanted = first.config.get("eval_data_sha256")
    for run in others:
        found = run.config.get("eval_data_sha256")
        if found != wanted:
            raise CompareError(
                f"{first.folder} and {run.folder} were evaluated on different held-out sets (sha256 "
                f"{str(wanted)[:12]} and {str(found)[:12]}); runs compare only on the same --eval-data"
            )


def _chosen_step(run: RunRecord, step: int | None) -> int:
    known = [int(line["step"]) for line in run.evaluations]
    if step is None:
        return known[-1]
    if step not in known:
        raise CompareError(f"{run.folder}: was not evaluated at step {step}, only at {', '.join(map(str, known))}")
    return step


def _results(run: RunRecord, step: int) -> dict[str, ExampleResult]:
    path = results_path(run.folder, step)
    if not path.is_file():
        raise CompareError(f"{path}: is missing, so its examples cannot be paired; train the run again")
    return {result.example: result for result in read_results(path)}


def _row(name: str, found: Sequence[Figure]) -> Row | None:
    """The score on the examples on which all runs have it; None where these are fewer than two."""
    measured = np.all([figure.measured for figure in found], axis=0)  # [E]
    if measured.sum() < 2:
        return None
    first, *others = chosen = [replace(figure, parts=figure.parts[measured]) for figure in found]
    values = tuple(figure.value for figure in chosen)
    return Row(name, values, tuple(figure_difference(first, other) for other in others))


def _incomparable(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """Beginnings of the names of scores that do not mean the same in all runs."""
    if _differs(runs, "tokenizer_fingerprint"):
        return _PER_TOKEN
    return _AGAINST_TEACHER if _differs(runs, "teacher_fingerprint") else ()


def _differs(runs: Sequence[RunRecord], key: str) -> bool:
    return any(run.config.get(key) != runs[0].config.get(key) for run in runs)


def _notes(runs: Sequence[RunRecord], num_shared: int) -> tuple[str, ...]:
    notes = []
    if _differs(runs, "tokenizer_fingerprint"):
        notes.append("the tokenizers differ: scores per token are left out")
    elif _differs(runs, "teacher_fingerprint"):
        notes.append("the teachers differ: divergence and agreement are left out")
    for key in ("max_new_tokens", "prompt_format"):
        if _differs(runs, key):
            notes.append(f"{key} differs: {', '.join(str(run.config.get(key)) for run in runs)}")
    if num_shared < 20:
        notes.append(f"{num_shared} examples are few: bootstrap intervals over fewer than 20 are too narrow")
    return tuple(notes)
