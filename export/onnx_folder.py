"""The files beside an ONNX graph, and the swap that makes a folder appear whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attar.engine.checkpoint import PROVENANCE, TOKENIZER_FILES
from attar.engine.config import ModelConfig
from attar.engine.tokenizer import load_tokenizer, save_tokenizer
from attar.export.errors import ExportError
from attar.export.genai_config import genai_config

MODEL = "model.onnx"
DATA = "model.onnx.data"
_OWN_FILES = frozenset({MODEL, DATA, "config.json", "genai_config.json", PROVENANCE, *TOKENIZER_FILES})


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write to, which takes the place of `folder` when the block ends without an exception.

    Raises:
      ExportError: If `folder` holds anything that this exporter did not write, or cannot be written.
    """
    _check_replaceable(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as staging:
            fresh = Path(staging, "new")
            fresh.mkdir()
            yield fresh
            if folder.exists():
                os.replace(folder, Path(staging, "old"))  # removed with the staging folder
            os.replace(fresh, folder)
    except OSError as error:
        raise ExportError(f"{folder}: cannot be written: {error}; choose another folder or free space") from error


def write_companions(
    folder: Path, checkpoint: Path, config: ModelConfig, context_length: int, export: Mapping[str, Any]
) -> None:
    """Writes configs, provenance and tokenizer.

    Args:
      folder: Where the graph is.
      checkpoint: The model the graph was made from, for its tokenizer and provenance.
      export: What the exporter did; goes to `attar.json` as "export".
    """
    _write_json(folder / "config.json", config.to_hf())
    _write_json(folder / "genai_config.json", genai_config(config, context_length))
    source = checkpoint / PROVENANCE
    provenance = json.loads(source.read_text(encoding="utf-8")) if source.is_file() else {}
    _write_json(folder / PROVENANCE, provenance | {"export": dict(export)})
    if has_tokenizer(checkpoint):
        save_tokenizer(load_tokenizer(checkpoint), folder)


def has_tokenizer(checkpoint: Path) -> bool:
    """Whether a checkpoint brings the tokenizer that its text needs; weights alone may do without."""
    return checkpoint.is_file() or any((checkpoint / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ExportError(f"{folder}: is a file; choose another folder for the export")
    entries = {entry.name for entry in folder.iterdir()}
    foreign = sorted(entries - _OWN_FILES)
    if entries and (foreign or MODEL not in entries):
        what = f"it contains {foreign[0]!r}" if foreign else f"it has no {MODEL}"
        raise ExportError(f"{folder}: was not written by this exporter alone ({what}); choose another folder")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
