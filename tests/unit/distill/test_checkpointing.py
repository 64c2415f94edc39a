"""Checkpoints are complete or absent, and read back bit for bit."""

import errno
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attar.distill import checkpointing
from attar.distill.checkpointing import list_checkpoints, load_checkpoint, save_checkpoint
from attar.distill.run_folder import RunError
from attar.distill.step import OptimizerConfig, TrainState, init_state, make_optimizer


def state(step: int, width: int = 3) -> TrainState:
    params = {"embed_tokens": jnp.linspace(0.0, 1.0 / 3.0, width), "layers": {"norm": jnp.full(2, step * 1e-8)}}
    made = init_state(params, make_optimizer(OptimizerConfig(1e-3, 10)))
    return made._replace(step=jnp.int32(step))


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved = state(7)
    path = save_checkpoint(tmp_path, saved, (1, 2), keep=1)
    loaded = load_checkpoint(path, jax.eval_shape(lambda: state(0)))
    assert jax.tree.structure(loaded) == jax.tree.structure(saved)
    for left, right in zip(jax.tree.leaves(loaded), jax.tree.leaves(saved), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def test_the_newest_are_kept_in_order(tmp_path: Path) -> None:
    for step in (5, 90, 100):
        save_checkpoint(tmp_path, state(step), (0, 0), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000090", "step_00000100"]


def test_a_half_written_one_is_not_a_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(5), (0, 0), keep=2)
    (tmp_path / ".partial_00000006").mkdir()
    (tmp_path / ".partial_00000006" / "sha256_0.json").write_bytes(b"half")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000005"]
    save_checkpoint(tmp_path, state(6), (0, 0), keep=2)  # what a killed run left is in nobody's way
    assert load_checkpoint(list_checkpoints(tmp_path)[-1], state(0)).step == 6
    assert not list(tmp_path.glob(".partial*"))


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, state(5), (0, 0), keep=1)

    def fill(path: Path, state: TrainState) -> None:
        path.mkdir()
        (path / "manifest.ocdbt").write_bytes(b"the first half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpointing, "_write_state", fill)
    with pytest.raises(RunError, match=r"step_00000006: .*No space left.*earlier checkpoints are intact"):
        save_checkpoint(tmp_path, state(6), (0, 0), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000005"]
    assert load_checkpoint(tmp_path / "step_00000005", state(0)).step == 5


def test_no_room_is_found_before_anything_is_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(tmp_path, state(5), (0, 0), keep=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(RunError, match=r"step_00000006: .*File too large.*earlier checkpoints are intact"):
            save_checkpoint(tmp_path, state(6, width=1000), (0, 0), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000005"]
    assert load_checkpoint(tmp_path / "step_00000005", state(0)).step == 5


def test_damage_is_found(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state(5), (0, 0), keep=1)
    files = [file for file in (path / "state").rglob("*") if file.is_file() and file.stat().st_size]
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(RunError, match=rf"step_00000005: the checkpoint is damaged.*{file.name} differs"):
            load_checkpoint(path, state(0))
        file.write_bytes(whole)
    load_checkpoint(path, state(0))
    files[0].unlink()
    with pytest.raises(RunError, match=r"step_00000005: the checkpoint cannot be read"):
        load_checkpoint(path, state(0))
    (path / "checkpoint.json").write_text("{}")
    with pytest.raises(RunError, match=r"step_00000005: the checkpoint cannot be read"):
        load_checkpoint(path, state(0))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state(5), (0, 0), keep=1)
    with pytest.raises(RunError, match=r"embed_tokens.* must be float32\[4\], got float32\[3\]"):
        load_checkpoint(path, state(0, width=4))
