"""Throughput with one core taken: decoding and reading beside a program that never rests, over the same on a quiet
machine.

    python -m benchmarks.busy [--models ...] [--threads N] [--json]

The busy program is one endless loop, left to the system to place. Rounds alternate quiet and busy processes of
`attar-run --bench`; each process reports its best take, and the ratio is the median over rounds. A runtime whose
threads wait for each other in a spin collapses here; the least that is asked is 0.4.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from attar.cli._console import make_table, out
from benchmarks.command import count, run_command
from benchmarks.peers import add_option
from benchmarks.runtime_models import MODELS, TITLES, model_file, say
from benchmarks.runtime_process import BenchPlan, Measurement, find_attar_run, measure_attar

BAR = 0.4
Speed = Callable[[Measurement], float]
PHASES: dict[str, Speed] = {"decode": lambda m: m.decode[0], "prefill": lambda m: m.prefill}


@dataclass(frozen=True)
class Row:
    """One phase of one model: medians over rounds, speeds in tokens a second.

    Attributes:
      ratio: Of busy over quiet within a round.
    """

    model: str
    phase: str
    quiet: float
    busy: float
    ratio: float


@contextmanager
def busy_core() -> Iterator[None]:
    """A process that computes without end."""
    spin = subprocess.Popen([sys.executable, "-c", "while True: pass"], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        spin.kill()
        spin.wait()


def measure_rounds(program: Path, model: Path, plan: BenchPlan, rounds: int) -> list[tuple[Measurement, Measurement]]:
    """Quiet and busy, side by side."""
    pairs = []
    for _ in range(rounds):
        quiet = measure_attar(program, model, plan)
        with busy_core():
            pairs.append((quiet, measure_attar(program, model, plan)))
    return pairs


def make_row(model: str, phase: str, speed: Speed, pairs: list[tuple[Measurement, Measurement]]) -> Row:
    """One phase of all rounds' (quiet, busy) pairs."""
    quiet, busy = (statistics.median(map(speed, side)) for side in zip(*pairs, strict=True))
    return Row(model, phase, quiet, busy, statistics.median(speed(b) / speed(q) for q, b in pairs))


def spell(row: Row) -> list[str]:
    """A row of the table."""
    verdict = f"{BAR} {'pass' if row.ratio >= BAR else 'FAIL'}"
    name = f"{TITLES[row.model]}, {row.phase}"
    return [name, f"{row.quiet:,.0f}", f"{row.busy:,.0f}", f"{row.ratio:.2f}", verdict]


def main() -> int:
    """Prints a table, or one JSON object; 1 if a ratio is below the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["smollm2_q4_0", "smollm2_q8_0"])
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--attar-run", type=Path, help="the program to measure (default: beside this Python)")
    parser.add_argument("--json", action="store_true")
    add_option(parser)
    chosen = parser.parse_args()
    program = find_attar_run(chosen.attar_run)
    plan = replace(BenchPlan(), threads=chosen.threads, depths=(0,), decode_tokens=128)
    rows: list[Row] = []
    for name in chosen.models:
        say(f"{name}: {chosen.rounds} rounds")
        pairs = measure_rounds(program, model_file(name, chosen.peers_python), plan, chosen.rounds)
        rows += [make_row(name, phase, speed, pairs) for phase, speed in PHASES.items()]
    if chosen.json:
        print(json.dumps({"bar": BAR, "rows": [asdict(row) for row in rows]}))
    else:
        title = f"One of the cores taken; {chosen.threads} threads"
        columns = ["", "quiet, tokens/s", "one core taken", "ratio", "bar"]
        out.print(make_table(title, columns, [spell(row) for row in rows]))
    return int(any(row.ratio < BAR for row in rows))


if __name__ == "__main__":
    run_command(main)
