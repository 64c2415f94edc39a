"""Configuration, metrics and lock of a run folder, and what goes wrong with them."""

import errno
import os
from pathlib import Path

import pytest

from attar.distill.run_folder import MetricsLog, RunError, hold_folder, read_metrics, settle_config, write_text


def test_an_equal_configuration_resumes(tmp_path: Path) -> None:
    settle_config(tmp_path, {"steps": 3, "layers": (0, 1)}, frozenset(), resuming=False)
    settle_config(tmp_path, {"steps": 3, "layers": (0, 1)}, frozenset(), resuming=True)


def test_another_configuration_is_refused_with_both_values(tmp_path: Path) -> None:
    settle_config(tmp_path, {"steps": 3, "beta": 0.5, "data": "a"}, frozenset({"data"}), resuming=False)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(RunError, match=r"config\.json: .*beta was 0\.5, is 0\.1; steps was 3, is 4"):
        settle_config(tmp_path, {"steps": 4, "beta": 0.1, "data": "b"}, frozenset({"data"}), resuming=True)
    assert (tmp_path / "config.json").read_bytes() == before
    settle_config(tmp_path, {"steps": 3, "beta": 0.5, "data": "b"}, frozenset({"data"}), resuming=True)


def test_a_run_that_has_no_state_yet_may_change_its_configuration(tmp_path: Path) -> None:
    settle_config(tmp_path, {"batch_size": 99}, frozenset(), resuming=False)
    settle_config(tmp_path, {"batch_size": 9}, frozenset(), resuming=False)
    settle_config(tmp_path, {"batch_size": 9}, frozenset(), resuming=True)


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config\.json: cannot be read"):
        settle_config(tmp_path, {}, frozenset(), resuming=True)


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, None) as log:
        for step in range(1, 6):
            log.write(step, {"loss": step / 2})
    path.write_text(path.read_text() + '{"step": 6, "lo')  # killed while writing
    with MetricsLog(path, 3) as log:
        log.write(4, {"loss": 9.0})
    assert read_metrics(path) == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 1.5},
        {"step": 4, "loss": 9.0},
    ]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl:2: is not valid JSON"):
        read_metrics(path)


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, None)
    os.dup2(os.open("/dev/full", os.O_WRONLY), log._file.fileno())  # every later write finds no space
    with log, pytest.raises(RunError, match=r"metrics\.jsonl: cannot be written: No space left"):
        log.write(1, {"loss": 1.0})


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with hold_folder(tmp_path), pytest.raises(RunError, match="another process is at work here"), hold_folder(tmp_path):
        pass
    with hold_folder(tmp_path):  # the lock went with its holder
        pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="the folder cannot be written"), hold_folder(tmp_path / "file" / "run"):
        pass


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    write_text(path, "old")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RunError, match=r"page\.html: cannot be written: No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
