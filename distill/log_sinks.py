"""A run's metrics in TensorBoard or Weights & Biases, for those who watch many runs there.

Both follow metrics.jsonl line by line, so that they show what the run folder holds and nothing else. A resumed run
drops the lines after its checkpoint and writes them again. The TensorBoard events are then written anew from the first
line; Weights & Biases, which keeps what it was sent, is sent the steps that it does not have: the others are the same.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from attar.distill.evaluate import Evaluation
from attar.distill.progress import Callback, Silent, SinkName, StepReport
from attar.distill.run_folder import RunError, read_metrics, write_text

_UNLOGGED = ("step", "kind", "normalization", "samples", "scores")  # what is no figure, or is spread over several


class Sink(Protocol):
    """Where figures go."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds the figures of a step, by names such as "train/loss"."""
        ...

    def close(self) -> None:
        """Sees to it that all figures have arrived."""
        ...


class MetricsFollower(Silent):
    """The callback that hands each new line of metrics.jsonl to sinks.

    Args:
      run_dir: Run folder.
      names: Which sinks; each is opened with the first line.

    Raises:
      RunError: If a sink's library is not installed.
    """

    def __init__(self, run_dir: Path, names: Sequence[SinkName]) -> None:
        self._metrics = run_dir / "metrics.jsonl"
        self._run_dir = run_dir
        self._names = names
        for name in names:
            _require(name)
        # Taken before the run drops the lines that it will write again.
        known = read_metrics(self._metrics) if names else []
        self._sent = max((line["step"] for line in known), default=-1)
        self._read = 0  # bytes
        self._sinks: list[Sink] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in self._sinks:
            sink.close()

    def on_step(self, report: StepReport) -> None:
        """Hands on the step's line."""
        self._follow()

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Hands on the evaluation's line."""
        self._follow()

    def _follow(self) -> None:
        if not self._names:
            return
        if not self._sinks:
            self._sinks = [_open(name, self._run_dir, self._sent) for name in self._names]
        for line in self._new_lines():
            figures = line_figures(line)
            for sink in self._sinks if figures else ():
                sink.write(line["step"], figures)

    def _new_lines(self) -> Iterator[dict[str, Any]]:
        with self._metrics.open("rb") as file:
            file.seek(self._read)
            *complete, _ = file.read().split(b"\n")
        self._read += sum(len(line) + 1 for line in complete)
        return map(json.loads, complete)


def line_figures(line: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a line of metrics.jsonl by name: the step's under "train/", an evaluation's under "eval/"."""
    kind = line["kind"]
    figures = {name: value for name, value in line.items() if name not in _UNLOGGED}
    for name, interval in line.get("scores", {}).items():
        figures |= {name: interval["mean"], f"{name}/low": interval["low"], f"{name}/high": interval["high"]}
    return {f"{kind}/{name}": float(value) for name, value in figures.items()}


class TensorBoardSink:
    """Event files in the run's `tensorboard` folder; those of before are written anew.

    Written in the run's own thread: the library's other writer waits forever for a thread that a full disk has ended.
    """

    def __init__(self, run_dir: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        # Made at run time, so that type checkers do not know it.
        self._event_type: Any = import_module("tensorboardX.proto.event_pb2").Event
        self._folder = run_dir / "tensorboard"
        with self._refusing():
            self._folder.mkdir(exist_ok=True)
            for old in self._folder.glob("events.*"):
                old.unlink()
            self._writer = EventsWriter(str(self._folder / "events"))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds one event with a scalar per figure."""
        event = self._event_type(wall_time=time.time(), step=step)
        for name, value in figures.items():
            event.summary.value.add(tag=name, simple_value=value)
        with self._refusing():
            self._writer.write_event(event)
            self._writer.flush()

    def close(self) -> None:
        """Closes the file; what a full disk refused was reported when it was written."""
        with suppress(OSError):
            self._writer.close()

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self._folder}: cannot be written: {error.strerror}; the last checkpoint is intact"
            ) from None


class WandbSink:
    """A run of Weights & Biases; project, entity and mode are those of its environment variables.

    Args:
      run_dir: Run folder, where the run's id is kept, so that a resumed run is the same run there.
      sent: Last step that was sent before.
    """

    def __init__(self, run_dir: Path, sent: int) -> None:
        import wandb

        path = run_dir / "wandb-id"
        if not path.exists():
            write_text(path, secrets.token_hex(4))
        self._sent = sent
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "attar"),
                id=path.read_text(encoding="utf-8"),
                name=run_dir.name,
                dir=str(run_dir),
                resume="allow",
                config=json.loads((run_dir / "config.json").read_text(encoding="utf-8")),
                settings=wandb.Settings(console="off", silent=True),
            )
        except (wandb.Error, OSError) as error:
            raise RunError(
                f"wandb cannot start: {error}; run `wandb login`, or set WANDB_MODE=offline to sync later"
            ) from None

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Sends the figures, unless the step was sent before the run was resumed."""
        if step > self._sent:
            self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Waits until all is sent."""
        self._run.finish()


def _require(name: SinkName) -> None:
    """Refuses a sink whose library is missing before any work is done."""
    try:
        if name == "tensorboard":
            import tensorboardX  # noqa: F401
        else:
            import wandb  # noqa: F401
    except ModuleNotFoundError as error:
        raise RunError(f"log {name} needs {error.name}; run: pip install 'attar[{name}]'") from None


def _open(name: SinkName, run_dir: Path, sent: int) -> Sink:
    return TensorBoardSink(run_dir) if name == "tensorboard" else WandbSink(run_dir, sent)


class Several:
    """The callback that tells all of the given ones, in their order."""

    def __init__(self, *callbacks: Callback) -> None:
        self._callbacks = callbacks

    def on_stage(self, stage: str) -> None:
        """Passes the stage on."""
        for callback in self._callbacks:
            callback.on_stage(stage)

    def on_note(self, note: str) -> None:
        """Passes the note on."""
        for callback in self._callbacks:
            callback.on_note(note)

    def on_step(self, report: StepReport) -> None:
        """Passes the step on."""
        for callback in self._callbacks:
            callback.on_step(report)

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Passes the evaluation on."""
        for callback in self._callbacks:
            callback.on_evaluation(step, evaluation)
