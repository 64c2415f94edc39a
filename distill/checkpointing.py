"""Checkpoints of a training run: complete or absent, whatever happens while one is written, and fit for any mesh.

```
checkpoints/step_00000120/
  state/             every leaf of the TrainState by its path, exact bytes; orbax divides them among files and processes
  sha256_0.json      {file within the folder: its hash}, of the files that process 0 saw to; likewise of the others
  checkpoint.json    {"step": 120, "epoch": 1, "batch": 7, "processes": 1, "arrays": {path: [dtype, shape]}}
```
A checkpoint is written to a folder with another name, synced to disk and renamed; older ones are removed only after.
orbax is used on one device too, so that a run may go on under another mesh; its own renaming is not relied upon, as
the hashes must be inside before a checkpoint counts. The folder must be one that all processes of a run see.
Random numbers need no state: every key is derived from (seed, step), see `trainer`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from attar.distill.run_folder import RunError, sync_folder
from attar.distill.step import TrainState
from attar.engine.processes import any_problem, by_first, is_first, share

_NAME = re.compile(r"step_(\d{8})")
_DESCRIPTION = "checkpoint.json"


def save_checkpoint(folder: Path, state: TrainState, position: tuple[int, int], keep: int) -> Path:
    """Writes the state, then removes all but the `keep` newest checkpoints. All processes of a run call it together.

    Args:
      folder: The run's `checkpoints` folder; made if absent.
      state: What to keep, on whatever mesh.
      position: (epoch, batch within it) that the next step reads; for the reader, since the step determines it.
      keep: At least 1.

    Raises:
      RunError: If it cannot be written (full disk, no permission). Earlier checkpoints are intact then.
    """
    step = int(state.step)
    final, partial = folder / f"step_{step:08d}", folder / f".partial_{step:08d}"
    problem = any_problem(_attempt(lambda: by_first(lambda: _make_empty(partial))))
    problem = problem or any_problem(_attempt(lambda: _reserve(partial, state)))
    problem = problem or any_problem(_attempt(lambda: _write_state(partial / "state", state)))
    problem = problem or any_problem(_attempt(lambda: _write_hashes(partial)))
    description = {"step": step, "epoch": position[0], "batch": position[1], "processes": jax.process_count()}
    problem = problem or any_problem(_attempt(lambda: _publish(partial, final, state, description)))
    if problem:
        if is_first():
            shutil.rmtree(partial, ignore_errors=True)
        raise RunError(f"{final}: the checkpoint cannot be written: {problem}; earlier checkpoints are intact")
    if is_first():
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, the oldest first; what a killed run left half-written is not among them."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if _NAME.fullmatch(entry.name))


def load_checkpoint(path: Path, like: TrainState, shardings: Any = None) -> TrainState:
    """Reads a checkpoint back, bit for bit, onto one device or another mesh than the one it was saved from.

    Args:
      path: As from `list_checkpoints`.
      like: A state of the same structure, shapes and dtypes; its values are not used.
      shardings: A tree of the same structure, as from `weight_shardings`; None puts all on one device.

    Raises:
      RunError: If it is damaged or belongs to another model or optimizer.
    """
    stored = _check_files(path)
    wanted = _named(like)
    for name, leaf in wanted.items():
        expected = _signature(leaf)
        if stored.get(name) != expected:
            found = _spell(stored.get(name))
            raise RunError(f"{path}: {name} must be {_spell(expected)}, got {found}; it is of another run")
    one_device = SingleDeviceSharding(jax.devices()[0])
    where = dict.fromkeys(wanted, one_device) if shardings is None else _named(shardings)
    arrays = _read_state(path / "state", wanted, where)
    leaves = [arrays[name] for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)  # type: ignore[no-any-return]  # the structure of `like`


def _check_files(path: Path) -> dict[str, list[Any]]:
    """Compares all files with their hashes, each process its share; returns [dtype, shape] of each array."""
    remedy = "remove it to resume from an earlier one"
    try:
        described = json.loads((path / _DESCRIPTION).read_text(encoding="utf-8"))
        stored: dict[str, list[Any]] = described["arrays"]
        hashes: dict[str, str] = {}
        for process in range(described["processes"]):
            hashes |= json.loads((path / f"sha256_{process}.json").read_text(encoding="utf-8"))
        differing = (name for name in share(sorted(hashes)) if _sha256(path / name) != hashes[name])
        damaged = next(differing, None)
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise RunError(f"{path}: the checkpoint cannot be read: {error!r}; {remedy}") from None
    damaged = any_problem(damaged)
    if damaged:
        raise RunError(f"{path}: the checkpoint is damaged (the hash of {damaged} differs); {remedy}")
    return stored


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by path, such as `params.layers.q_proj`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _signature(leaf: Any) -> list[Any]:
    return [str(leaf.dtype), list(leaf.shape)]


def _spell(signature: list[Any] | None) -> str:
    return "nothing" if signature is None else f"{signature[0]}{signature[1]}"


def _attempt(action: Any) -> str | None:
    """Does something; returns what went wrong, if it did."""
    try:
        action()
    except Exception as error:  # orbax and tensorstore raise what the file system said as several types
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _reserve(folder: Path, state: TrainState) -> None:
    """Raises what the file system says if this process's part, uncompressed, has no room on it.

    orbax's threads would each speak of it, with a traceback, in the midst of writing.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    shards = [shard for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards if shard.replica_id == 0]
    room = folder / f"room_{jax.process_index()}"
    with room.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, sum(shard.data.nbytes for shard in shards)))
    room.unlink()


def _write_state(folder: Path, state: TrainState) -> None:
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)) as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(_named(state)))


def _read_state(folder: Path, wanted: dict[str, Any], shardings: dict[str, Any]) -> dict[str, jax.Array]:
    import orbax.checkpoint as ocp

    arguments = {
        name: ocp.ArrayRestoreArgs(sharding=shardings[name], global_shape=leaf.shape, dtype=leaf.dtype)
        for name, leaf in wanted.items()
    }
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)) as checkpointer:
        restored: dict[str, jax.Array] = checkpointer.restore(
            folder.absolute(), args=ocp.args.PyTreeRestore(item=wanted, restore_args=arguments)
        )
    return restored


def _write_hashes(folder: Path) -> None:
    """Hashes this process's share of the files and waits until they are on the disk."""
    files = sorted(entry for entry in folder.rglob("*") if entry.is_file() and entry.parent != folder)
    hashes = {}
    for file in share(files):
        hashes[str(file.relative_to(folder))] = _sha256(file)
        _sync(file)
    _write_json(folder / f"sha256_{jax.process_index()}.json", hashes)


def _publish(partial: Path, final: Path, state: TrainState, description: dict[str, Any]) -> None:
    """In the first process: describes the checkpoint, brings it to the disk and gives it its name."""
    if not is_first():
        return
    _write_json(partial / _DESCRIPTION, {**description, "arrays": {n: _signature(a) for n, a in _named(state).items()}})
    for entry in (*partial.rglob("*"), partial):
        if entry.is_dir():
            sync_folder(entry)
    shutil.rmtree(final, ignore_errors=True)  # a damaged one: a complete one would have been resumed from
    partial.rename(final)
    sync_folder(final.parent)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
