"""What every recipe leaves in its folder: one JSONL file a split, and recipe.json, which says how they were made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

Row = dict[str, str | int]
"""One example: `prompt`, `completion`, and what describes it."""


@dataclass
class RecipeReport:
    """What a recipe made, and from what.

    Attributes:
      recipe: Its name.
      origin: Where the texts come from.
      options: What was asked for; the same options on the same origin give the same files.
      dropped: Left out, by reason.
      pairs: Examples written.
      splits: Examples by split.
    """

    recipe: str
    origin: str
    options: dict[str, str | int | None] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    pairs: int = 0
    splits: dict[str, int] = field(default_factory=dict)


def write_data_set(folder: Path, splits: Mapping[str, Sequence[Row]], report: RecipeReport) -> None:
    """Writes `<split>.jsonl` for each split into a folder and the report, with its counts filled in, as recipe.json.

    Raises:
      OSError: If the folder cannot be written; no file is left half written.
    """
    for name, rows in splits.items():
        _write_atomically(folder / f"{name}.jsonl", (json.dumps(row, ensure_ascii=False) for row in rows))
    report.splits = {name: len(rows) for name, rows in splits.items()}
    report.pairs = sum(report.splits.values())
    _write_atomically(folder / "recipe.json", [json.dumps(asdict(report), indent=2, ensure_ascii=False)])


def _write_atomically(path: Path, lines: Iterable[str]) -> None:
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
