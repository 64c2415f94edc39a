"""Checkpoints of a training run: complete or absent, whatever happens while one is written.

```
checkpoints/step_00000120/
  state.safetensors    every leaf of the TrainState by its path, exact bytes
  checkpoint.json      {"step": 120, "epoch": 1, "batch": 7, "sha256": hash of state.safetensors}
```
A checkpoint is written to a folder with another name, synced to disk and renamed; older ones are removed only after.
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
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from attar.distill.run_folder import RunError, sync_folder
from attar.distill.step import TrainState

_NAME = re.compile(r"step_(\d{8})")


def save_checkpoint(folder: Path, state: TrainState, position: tuple[int, int], keep: int) -> Path:
    """Writes the state, then removes all but the `keep` newest checkpoints.

    Args:
      folder: The run's `checkpoints` folder; made if absent.
      state: What to keep.
      position: (epoch, batch within it) that the next step reads; for the reader, since the step determines it.
      keep: At least 1.

    Raises:
      RunError: If it cannot be written (full disk, no permission). Earlier checkpoints are intact then.
    """
    step = int(state.step)
    final, partial = folder / f"step_{step:08d}", folder / f".partial_{step:08d}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(partial, state, {"step": step, "epoch": position[0], "batch": position[1]})
        shutil.rmtree(final, ignore_errors=True)  # a damaged one: a complete one would have been resumed from
        partial.rename(final)
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(f"{final}: the checkpoint cannot be written: {error}; earlier checkpoints are intact") from None
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, the oldest first; what a killed run left half-written is not among them."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if _NAME.fullmatch(entry.name))


def load_checkpoint(path: Path, like: TrainState) -> TrainState:
    """Reads a checkpoint back, bit for bit.

    Args:
      path: As from `list_checkpoints`.
      like: A state of the same structure, shapes and dtypes; its values are not used.

    Raises:
      RunError: If it is damaged or belongs to another model or optimizer.
    """
    try:
        described = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
        if _sha256(path / "state.safetensors") != described["sha256"]:
            raise RunError(
                f"{path}: the checkpoint is damaged (its hash differs); remove it to resume from an earlier one"
            )
        arrays = load_file(path / "state.safetensors")
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise RunError(
            f"{path}: the checkpoint cannot be read: {error}; remove it to resume from an earlier one"
        ) from None
    named, tree = jax.tree_util.tree_flatten_with_path(like)
    leaves = [_matching(path, arrays, jax.tree_util.keystr(key), leaf) for key, leaf in named]
    return jax.tree_util.tree_unflatten(tree, leaves)  # type: ignore[no-any-return]  # the structure of `like`


def _write(folder: Path, state: TrainState, description: dict[str, Any]) -> None:
    named, _ = jax.tree_util.tree_flatten_with_path(state)
    arrays = {jax.tree_util.keystr(key): np.asarray(leaf, order="C") for key, leaf in named}
    weights = folder / "state.safetensors"
    save_file(arrays, weights)
    with weights.open("rb") as file:
        os.fsync(file.fileno())
    with (folder / "checkpoint.json").open("w", encoding="utf-8") as file:
        json.dump({**description, "sha256": _sha256(weights)}, file)
        file.flush()
        os.fsync(file.fileno())


def _matching(path: Path, arrays: dict[str, np.ndarray[Any, Any]], name: str, leaf: Any) -> jax.Array:
    array = arrays.get(name)
    if array is None or array.shape != leaf.shape or array.dtype != leaf.dtype:
        found = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
        raise RunError(f"{path}: {name} must be {leaf.dtype}{list(leaf.shape)}, got {found}; it is of another run")
    return jnp.asarray(array)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
