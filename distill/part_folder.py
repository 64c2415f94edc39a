"""A folder whose files are made one after the other, each whole or absent, so that long work goes on where it stopped.

An index file says under which settings the parts are made; it is written first, and once more when all parts are there.
Whoever goes on must do so under equal settings, and one process at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from attar.distill.run_folder import RunError, hold_folder, sync_folder, write_text


class PartError(RuntimeError):
    """A folder of parts that cannot be written, gone on with, or read; the message names it and the remedy."""


@contextmanager
def open_parts(
    folder: Path, index_name: str, settings: Mapping[str, Any], told: frozenset[str] = frozenset()
) -> Iterator[None]:
    """Makes the folder, holds its lock, and writes or checks the settings in its index.

    Args:
      folder: Made if absent. One that holds other things is refused.
      index_name: Name of the index, a JSON object.
      settings: JSON-able; what decides the content of the parts.
      told: Keys that are only told to the reader, such as paths, and may differ.

    Raises:
      PartError: If the folder cannot be written, is in use, or was begun under other settings.
    """
    if folder.is_dir() and not (folder / index_name).exists() and any(e.name != ".lock" for e in folder.iterdir()):
        raise PartError(f"{folder}: holds files but no {index_name}; choose an empty or a new folder")
    with ExitStack() as held:
        try:
            held.enter_context(hold_folder(folder))
        except RunError as error:
            raise PartError(str(error)) from None
        _settle(folder / index_name, json.loads(json.dumps(settings)), told)
        yield


def write_index(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an index whole.

    Raises:
      PartError: If it cannot be written.
    """
    try:
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except RunError as error:
        raise PartError(str(error)) from None


def read_index(path: Path) -> dict[str, Any]:
    """The index of a folder.

    Raises:
      PartError: If there is none, or it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PartError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise PartError(f"{path}: must hold a JSON object, got {type(content).__name__}")
    return content


def write_part(path: Path, content: str | Callable[[Path], None]) -> None:
    """Writes a file under another name, waits until it is on the disk, and gives it its name.

    Args:
      path: Of the part.
      content: Text, or what writes a file.

    Raises:
      PartError: If it cannot be written; the parts before it are intact.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        if isinstance(content, str):
            partial.write_text(content, encoding="utf-8")
        else:
            content(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise PartError(f"{path}: cannot be written: {error}; free space and run the same command again") from None


def _settle(path: Path, settings: dict[str, Any], told: frozenset[str]) -> None:
    if not path.exists():
        write_index(path, settings)
        return
    stored = read_index(path)
    differing = [key for key in settings if key not in told and stored.get(key) != settings[key]]
    if differing:
        changes = "; ".join(f"{key} was {stored.get(key)!r}, is {settings[key]!r}" for key in differing)
        raise PartError(f"{path}: was begun under other settings ({changes}); choose another folder")
