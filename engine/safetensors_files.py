"""Safetensors folders as Hugging Face lays them out: one `model.safetensors`, or shards named by an index."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - registers bfloat16 with numpy, which safetensors needs to hand out BF16
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_READABLE = frozenset({"F32", "F16", "BF16"})

Shape = tuple[int, ...]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read as the model it claims to be, or a folder that cannot be written."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      CheckpointError: If the file is missing, not UTF-8 JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; a model folder must contain it") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}; fetch or write it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, got {type(content).__name__}; fetch it again")
    return content


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder, each once.

    Raises:
      CheckpointError: If there are none, or the index names a file that is missing or outside the folder.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise CheckpointError(f"{folder}: holds neither {SINGLE} nor {INDEX}; give a folder with safetensors weights")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX}: must map tensors to files under 'weight_map'; fetch it again")
    shards = []
    for name in sorted({str(file) for file in weight_map.values()}):
        if Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(f"{folder / INDEX}: names {name!r}, which is not a file beside it; fetch it")
        shards.append(folder / name)
    return shards


def read_shapes(path: Path) -> dict[str, Shape]:
    """Name and shape of every tensor of one file, from its header.

    Raises:
      CheckpointError: If the file is truncated or corrupt, or a tensor has a dtype other than F32, F16 or BF16.
    """
    shapes = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - a safe_open is no mapping
                view = file.get_slice(name)
                if view.get_dtype() not in _READABLE:
                    raise CheckpointError(
                        f"{path}: tensor {name!r} must be F32, F16 or BF16, got {view.get_dtype()}; "
                        "convert the weights to one of these"
                    )
                shapes[name] = tuple(view.get_shape())
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None
    return shapes


def iter_tensors(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Each tensor of one file in turn, converted to float32.

    Raises:
      CheckpointError: If the file is truncated or corrupt.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - a safe_open is no mapping
                yield name, file.get_tensor(name).astype(np.float32)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None


class TensorSlices:
    """Parts of tensors, read from the files as they are asked for.

    Args:
      paths: As from `find_shards`.

    Raises:
      CheckpointError: If a file is truncated or corrupt.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: dict[str, tuple[Path, Any]] = {}
        for path in paths:
            try:
                file: Any = safe_open(path, framework="numpy")
                for name in file.keys():  # noqa: SIM118 - a safe_open is no mapping
                    self._files[name] = path, file
            except (SafetensorError, OSError) as error:
                raise _damaged(path, error) from None

    def read(self, name: str, index: tuple[slice, ...]) -> NDArray[np.float32]:
        """One part of one tensor, converted to float32."""
        path, file = self._files[name]
        try:
            part: NDArray[np.float32] = file.get_slice(name)[index].astype(np.float32)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from None
        return part


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Writes one file; its metadata says "pt", without which transformers refuses it."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: not a whole safetensors file: {error}; fetch or write it again")
