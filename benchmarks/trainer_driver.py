"""attar's trainer on the benchmark's models and rows; prints a line of JSON with the seconds of every step.

    python -m benchmarks.trainer_driver FOLDER {on_policy,supervised} BATCH STEPS NEW_TOKENS

The whole of `attar distill` runs: reading, batches, masks, metrics, and a checkpoint at the end.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from attar.distill.config import TrainConfig
from attar.distill.evaluate import Evaluation
from attar.distill.progress import StepReport
from attar.distill.trainer import train


def peak_rss_bytes() -> int:
    """Of this process, so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


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


def main() -> None:
    """Trains in a folder that is thrown away."""
    folder, mode, *numbers = sys.argv[1:]
    batch, steps, new_tokens = map(int, numbers)
    config = TrainConfig(
        data=str(Path(folder) / "rows.jsonl"),
        method="gkd",
        teacher=str(Path(folder) / "teacher"),
        student=str(Path(folder) / "student"),
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
    clock = Clock()
    with tempfile.TemporaryDirectory() as work:
        train(config, Path(work) / "run", clock)
    seconds = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    print(json.dumps({"step_seconds": seconds, "losses": clock.losses, "peak_rss_bytes": peak_rss_bytes()}))


if __name__ == "__main__":
    main()
