"""What TensorBoard and Weights & Biases hold after a run that was killed and resumed, read back from their files."""

import builtins
import json
import struct
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from attar.distill.evaluate import Evaluation
from attar.distill.log_sinks import MetricsFollower, SinkName, line_figures
from attar.distill.progress import StepReport
from attar.distill.run_folder import MetricsLog, RunError

# Their messages are made at run time, so that type checkers know none.
tensorboard_events: Any = import_module("tensorboardX.proto.event_pb2")
wandb_records: Any = import_module("wandb.proto.wandb_internal_pb2")

REPORT = StepReport(1, 4, 1.0, 1.0, 1.0, False, None, None)
SCORES = {"rougeL": {"mean": 0.5, "low": 0.25, "high": 0.75}}


def train(run: Path, names: tuple[SinkName, ...], first: int, last: int) -> MetricsFollower:
    """Steps from `first` to `last`, with an evaluation after every second one; a killed run never leaves it."""
    follower = MetricsFollower(run, names)
    with MetricsLog(run / "metrics.jsonl", first - 1 if first > 1 else None) as log:
        if first == 1:
            log.write(0, {"kind": "start", "normalization": "token", "student_parameters": 5})
        for step in range(first, last + 1):
            log.write(step, {"kind": "train", "loss": 1 / step, "on_policy": step % 2 == 1})
            follower.on_step(REPORT)
            if step % 2 == 0:
                log.write(step, {"kind": "eval", "perplexity": float(step), "scores": SCORES, "samples": []})
                follower.on_evaluation(step, Evaluation({}, 1.0))
    return follower


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"method": "sft", "student_layers": [1]}))
    return folder


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars by tag; a record is its length, two checksums, and an Event between them."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in folder.glob("events.*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = tensorboard_events.Event.FromString(data[at + 12 : at + 12 + size])
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
            at += size + 16
    return found


def test_tensorboard_holds_every_step_of_a_resumed_run_once(run: Path) -> None:
    with train(run, ("tensorboard",), 1, 5), train(run, ("tensorboard",), 4, 8):
        pass  # the first had closed nothing when the second began
    found = events(run / "tensorboard")
    assert found["train/loss"] == [(step, pytest.approx(1 / step)) for step in range(1, 9)]
    assert found["train/on_policy"][:2] == [(1, 1.0), (2, 0.0)]
    assert found["eval/perplexity"] == [(step, float(step)) for step in (2, 4, 6, 8)]
    assert found["eval/rougeL/low"][0] == (2, 0.25)
    assert found["start/student_parameters"] == [(0, 5.0)]


def log_records(path: Path) -> Iterator[bytes]:
    """Records of a LevelDB log behind seven bytes: pieces of (checksum, length, kind) in blocks of 32 KiB."""
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        _, size, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768  # no piece begins in the last bytes of a block
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def wandb_steps(run: Path) -> tuple[list[int], set[str]]:
    """Steps of all history records, over the offline folders of a run, and the ids of the runs."""
    steps, ids = [], set()
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for data in log_records(path):
            record = wandb_records.Record.FromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                steps.append(int(values["_step"]))
    return steps, ids


@pytest.mark.filterwarnings("default")  # the library's own
def test_wandb_is_sent_every_step_of_a_resumed_run_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for first, last in ((1, 5), (4, 8)):
        with train(run, ("wandb",), first, last):
            pass
    steps, ids = wandb_steps(run)
    assert Counter(steps) == Counter(range(9))
    assert ids == {(run / "wandb-id").read_text()}


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_library_is_named_before_anything_is_done(
    run: Path, monkeypatch: pytest.MonkeyPatch, name: SinkName, module: str
) -> None:
    importing = builtins.__import__

    def without(wanted: str, *rest: Any, **more: Any) -> Any:
        if wanted.split(".")[0] == module:
            raise ModuleNotFoundError(name=module)
        return importing(wanted, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RunError, match=rf"log {name} needs {module}; run: pip install 'attar\[{name}\]'"):
        MetricsFollower(run, (name,))


def test_figures_leave_out_what_is_none() -> None:
    line = {"step": 3, "kind": "eval", "perplexity": 2.0, "scores": SCORES, "samples": [{"prompt": "a"}]}
    expected = {"perplexity": 2.0, "rougeL": 0.5, "rougeL/low": 0.25, "rougeL/high": 0.75}
    assert line_figures(line) == {f"eval/{name}": value for name, value in expected.items()}
