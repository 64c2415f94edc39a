"""How the command line looks: one console for results, one for everything beside them, numbers spelled one way."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

out = Console(highlight=False)
if not out.is_terminal:
    out.width = 120  # a file or pipe has no width of its own; 80 would squeeze tables
err = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON object on standard output, for scripts."""
    out.file.write(json.dumps(value, ensure_ascii=False) + "\n")


def make_table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are right-aligned figures."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def progress_bar() -> Progress:
    """A bar with count, elapsed and remaining time, and a free field `note`; it draws on standard error."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=err,
    )


def spell_bytes(count: float | None) -> str:
    """Bytes in MB (10^6), the unit of file sizes; "-" where unknown."""
    if count is None:
        return "-"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def spell_seconds(seconds: float) -> str:
    """Milliseconds below one second, else seconds."""
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
