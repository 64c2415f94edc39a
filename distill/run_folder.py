"""The folder of one training run: its resolved configuration, its metrics, and the lock that keeps others out.

```
config.json      the resolved configuration; a run is resumed only under an equal one
metrics.jsonl    one JSON object a line, each with its "step"
evaluations/     what each evaluation found example by example; see example_results
checkpoints/     see checkpointing
student/         the trained model (Hugging Face layout), written at the end
adapter/         where only an adapter was trained: that adapter in PEFT's layout; `student` has it merged
initial/         the student that training started from, where it is in no other folder
tensorboard/     event files, and wandb-id, wandb/: where the run logs there too; see log_sinks
report.html      and plots/*.png, written at the end
```
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class RunError(RuntimeError):
    """A run that cannot start, go on or be resumed; the message names the file and the remedy."""


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Makes a folder and holds its lock, which ends with the process even when that is killed.

    Raises:
      RunError: If the folder cannot be written, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise RunError(f"{folder}: the folder cannot be written: {error.strerror}; choose another") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{folder}: another process is at work here; wait for it or choose another folder") from None
        yield


def settle_config(folder: Path, resolved: Mapping[str, Any], changeable: frozenset[str], *, resuming: bool) -> None:
    """Writes config.json; on resuming, first checks that the run was started under an equal one.

    Args:
      folder: The run folder.
      resolved: JSON-able content.
      changeable: Keys that may differ on resuming, since they do not touch the result.
      resuming: Whether the folder holds a state that goes on.

    Raises:
      RunError: If the stored configuration is damaged or differs; the message names each key with both values.
    """
    path = folder / "config.json"
    wanted = json.loads(json.dumps(resolved))  # as it will read back: tuples become lists
    if resuming:
        stored = _read_json(path)
        differing = sorted(key for key in {*stored, *wanted} - changeable if stored.get(key) != wanted.get(key))
        if differing:
            changes = "; ".join(f"{key} was {stored.get(key)!r}, is {wanted.get(key)!r}" for key in differing)
            raise RunError(
                f"{path}: the run was started under another configuration ({changes}); choose another folder"
            )
    write_text(path, json.dumps(wanted, indent=2) + "\n")


class MetricsLog:
    """Appends lines to metrics.jsonl; a line is on its way to the disk before the next step begins.

    Args:
      path: The file.
      last_step: Lines of later steps are dropped first, since those steps will be done again; None drops all.

    Raises:
      RunError: If the file cannot be written.
    """

    def __init__(self, path: Path, last_step: int | None) -> None:
        self._path = path
        kept = [] if last_step is None else [line for line in read_metrics(path) if line["step"] <= last_step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds one line."""
        line = {"step": step, **values}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise RunError(
                f"{self._path}: cannot be written: {error.strerror}; the last checkpoint is intact"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What a full disk refused was reported when it was written; an exception on its way out matters more.
        with suppress(OSError):
            self._file.close()

    def sync(self) -> None:
        """Waits until all lines are on the disk, so that no checkpoint is ahead of its metrics."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunError(
                f"{self._path}: cannot be written: {error.strerror}; the last checkpoint is intact"
            ) from None


class SilentLog:
    """The log of a process that does not speak for its run."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes nothing."""

    def sync(self) -> None:
        """Waits for nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl; a last line torn by a killed process is left out.

    Raises:
      RunError: If another line is damaged.
    """
    if not path.exists():
        return []
    *complete, _torn = path.read_text(encoding="utf-8").split("\n")
    lines = []
    for number, text in enumerate(complete, start=1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            raise RunError(f"{path}:{number}: is not valid JSON; remove the line to resume the run") from None
    return lines


def write_text(path: Path, text: str) -> None:
    """Writes a file so that it is either the old or the new one, also after a power cut.

    Raises:
      RunError: If it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}; free space or choose another folder") from None


def sync_folder(folder: Path) -> None:
    """Makes renames inside the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}; choose another folder") from None
    if not isinstance(value, dict):
        raise RunError(f"{path}: must be a JSON object, got {type(value).__name__}; choose another folder")
    return value
