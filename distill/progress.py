"""What a training run tells whoever watches it; drawing it is the command line's business."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol

from attar.distill.evaluate import Evaluation

SinkName = Literal["tensorboard", "wandb"]
"""Where else a run's metrics can go; see `log_sinks`."""


@dataclass(frozen=True)
class StepReport:
    """One optimisation step.

    Attributes:
      step: Steps done, this one included, of `steps`.
      loss: In nats per token, as the normalisation defines it.
      on_policy: Whether the batch was sampled from the student.
      tokens_per_second: Completion tokens trained on, over the last steps without those that compiled; None at first.
      eta_seconds: Expected time until the last step, evaluations not counted; None at first.
    """

    step: int
    steps: int
    loss: float
    grad_norm: float
    learning_rate: float
    on_policy: bool
    tokens_per_second: float | None
    eta_seconds: float | None


class Callback(Protocol):
    """Hears of a run as it goes. Exceptions end the run; its checkpoints stay."""

    def on_stage(self, stage: str) -> None:
        """A part of the run without steps begins, such as "loading models"."""
        ...

    def on_note(self, note: str) -> None:
        """The run decided something that whoever started it wants to know."""
        ...

    def on_step(self, report: StepReport) -> None: ...

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None: ...


class Silent:
    """The callback that ignores everything."""

    def on_stage(self, stage: str) -> None:
        """Ignores the stage."""

    def on_note(self, note: str) -> None:
        """Ignores the note."""

    def on_step(self, report: StepReport) -> None:
        """Ignores the step."""

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Ignores the evaluation."""


class Pace:
    """Speed over the last steps. The first step of a shape compiles and is left out."""

    def __init__(self, window: int = 50) -> None:
        self._steps: deque[tuple[float, int]] = deque(maxlen=window)
        self._seen: set[tuple[int, ...]] = set()

    def add(self, shape: tuple[int, ...], seconds: float, tokens: int) -> None:
        """Counts one step; `shape` is whatever decides what is compiled."""
        if shape in self._seen:
            self._steps.append((seconds, tokens))
        self._seen.add(shape)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second, None before the first counted step."""
        seconds = sum(step[0] for step in self._steps)
        return sum(step[1] for step in self._steps) / seconds if seconds > 0 else None

    def eta_seconds(self, steps_left: int) -> float | None:
        """Seconds that so many steps will take, None before the first counted step."""
        if not self._steps:
            return None
        return steps_left * sum(step[0] for step in self._steps) / len(self._steps)
