"""attar's trainer on the benchmark's models and rows; prints a line of JSON with the seconds of every step.

    python -m benchmarks.trainer_driver FOLDER {on_policy,supervised,label,labelled,order} BATCH STEPS NEW_TOKENS

The whole of `attar distill` runs: reading, batches, masks, metrics, and a checkpoint at the end. `labelled` is
supervised from what `label` stored before: the teacher's hidden states for all rows. `order` trains nothing and prints
which rows of the file the steps read, so that another trainer can be given the same.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from attar.distill.batches import choose_buckets
from attar.distill.config import TrainConfig
from attar.distill.evaluate import Evaluation
from attar.distill.label import LabelConfig, label
from attar.distill.models import load_models
from attar.distill.progress import StepReport
from attar.distill.run_inputs import load_data, open_stream
from attar.distill.trainer import train

TARGETS = "targets"


def peak_rss_bytes() -> int:
    """Of this process, so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def forget_peak_rss() -> None:
    """Makes `peak_rss_bytes` count from now on."""
    Path("/proc/self/clear_refs").write_text("5")


class Clock:
    """Notes when each step ends, and its loss."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_stage(self, stage: str) -> None:
        """The first step begins when training does."""
        if stage == "training":
            self.ends.append(time.perf_counter())

    def on_note(self, note: str) -> None:
        """Not of interest."""

    def on_step(self, report: StepReport) -> None:
        self.ends.append(time.perf_counter())
        self.losses.append(report.loss)

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:
        raise AssertionError("nothing is evaluated here")


def make_config(folder: Path, mode: str, batch: int, steps: int, new_tokens: int) -> TrainConfig:
    """What every trainer of the benchmark does, in attar's terms."""
    labelled = mode == "labelled"
    return TrainConfig(
        data=(str(folder / "rows.jsonl"),),
        method="gkd",
        teacher=None if labelled else str(folder / "teacher"),
        targets=str(folder / TARGETS) if labelled else None,
        student=str(folder / "student"),
        on_policy_fraction=1.0 if mode == "on_policy" else 0.0,
        beta=0.5,
        normalization="token",
        prompt_format="plain",
        max_new_tokens=new_tokens,
        steps=steps,
        batch_size=batch,
        learning_rate=1e-4,
        schedule="constant",
        checkpoint_every=steps,
    )


def row_order(config: TrainConfig) -> list[int]:
    """Rows of the file in the order in which the steps read them."""
    models = load_models(config)
    data, _ = load_data(config, models)
    stream = open_stream(config, models, data, choose_buckets(data, config.prompt_buckets, config.completion_buckets))
    rows = {tuple(example.prompt.tolist()): index for index, example in enumerate(data.examples)}
    return [
        rows[tuple(prompt)]
        for step in range(config.steps)
        for prompt in np.asarray(stream.batch(step).prompts).tolist()
    ]


def train_and_time(config: TrainConfig) -> dict[str, object]:
    """Trains in a folder that is thrown away."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as work:
        train(config, Path(work) / "run", clock)
    seconds = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    return {"step_seconds": seconds, "losses": clock.losses, "peak_rss_bytes": peak_rss_bytes()}


def label_and_time(folder: Path, batch: int, new_tokens: int) -> dict[str, object]:
    """Stores the teacher's hidden states of all rows, reading the teacher included, in place of what was stored."""
    shutil.rmtree(folder / TARGETS, ignore_errors=True)
    begin = time.perf_counter()
    rows = (str(folder / "rows.jsonl"),)
    asked = LabelConfig(
        rows, str(folder / "teacher"), "states", max_new_tokens=new_tokens, prompt_format="plain", batch_size=batch
    )
    label(asked, folder / TARGETS)
    return {"seconds": time.perf_counter() - begin, "peak_rss_bytes": peak_rss_bytes()}


def main() -> None:
    """Prints one JSON value."""
    folder, mode, *numbers = sys.argv[1:]
    batch, steps, new_tokens = map(int, numbers)
    config = make_config(Path(folder), mode, batch, steps, new_tokens)
    if mode == "label":
        print(json.dumps(label_and_time(Path(folder), batch, new_tokens)))
    else:
        print(json.dumps({"rows": row_order(config)} if mode == "order" else train_and_time(config)))


if __name__ == "__main__":
    main()
