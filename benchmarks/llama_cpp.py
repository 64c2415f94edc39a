"""The C runtime against llama.cpp on the same GGUF files, in the same run, with the same threads.

    python -m benchmarks.llama_cpp [--models ...] [--perplexity] [--quick] [--json]

Every figure comes from a process of its own with no interpreter in it: `attar-run --bench`, and a small driver linked
with the llama.cpp that llama-cpp-python builds natively. Processes alternate for a number of rounds; in each, either
side has two, llama.cpp with and without flash attention, and the better figure of the two counts. A process takes each
figure several times and reports the best, since other programs can only slow it down; a ratio is the median over rounds
of what attar and llama.cpp did side by side. All ratios are oriented so that above 1 is better for attar. `bar` is the
least that is asked of attar; `of bound` is the share of what bandwidth or the multiply instruction allow
(`benchmarks.roofline`). Both sides keep keys and values in f16; two more processes of attar have them in int8 at
depth, which must not be slower (`int8_gain`, over attar's f16).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from attar.cli._console import make_table, out
from attar.runtime.native import library_version
from benchmarks.bounds import Needs, needs_of
from benchmarks.command import count, run_command
from benchmarks.peers import LLAMA_CPP, add_option, installed_version, llama_driver, peers_python
from benchmarks.perplexity import BITS_KL_BAR, PERPLEXITY_BAR, Likelihood, compare_likelihood
from benchmarks.roofline import Machine, best_machine
from benchmarks.runtime_models import MODELS, TITLES, model_file, say
from benchmarks.runtime_process import BenchPlan, Measurement, better, find_attar_run, measure_attar, measure_llama

DEPTH = 2048
# A process loads once, so loads have processes of their own beside the one that measures speeds.
LOADING = BenchPlan(prefill_tokens=8, decode_tokens=2, depths=(0,), repeats=1)
LOADS = 3
# Keys and values in eight bits are for depth.
INT8 = ("--kv", "int8")
# Beside the weights and the cache: the program, scratch, the vocabulary.
RSS_ROOM_BYTES = 20_000_000


@dataclass(frozen=True)
class Row:
    """One figure of one model.

    Attributes:
      name: As in the JSON's `ratios`.
      attar: Median over rounds; likewise `peer`.
      ratio: Above 1 is better for attar.
      bar: The least ratio asked for; None where nothing is.
      share: Of the machine's bound that attar reaches; None where there is no bound.
    """

    name: str
    unit: str
    attar: float
    peer: float
    ratio: float
    bar: float | None
    share: float | None = None

    @property
    def passed(self) -> bool:
        return self.bar is None or self.ratio >= self.bar


def decode_bar(model: str, depth: int) -> float:
    """Bandwidth leaves less room on the larger model."""
    if depth:
        return 2.0
    return 1.1 if model.startswith("gemma") else 1.25


def prefill_bar(model: str) -> float | None:
    """llama.cpp repacks Q4_0 alone of these types."""
    if model.endswith("q4_k_m"):
        return None
    return 1.25 if model.endswith("q4_0") else 2.0


def rss_bar(model: str) -> float | None:
    """At most 0.65 of llama.cpp's where it keeps two copies of the weights."""
    return 1 / 0.65 if model.endswith("q4_0") else None


Rounds = Sequence[tuple[Measurement, Measurement]]


def compare(
    model: str, rounds: Rounds, int8: Sequence[float], file_bytes: int, needs: Needs, machine: Machine
) -> list[Row]:
    """Every row of one model.

    Args:
      rounds: What attar and llama.cpp did side by side.
      int8: attar's tokens a second at depth with an int8 cache, of each round.
    """

    def row(
        name: str, unit: str, figure: Callable[[Measurement], float], bar: float | None, bound: float | None = None
    ) -> Row:
        pairs = [(figure(attar), figure(peer)) for attar, peer in rounds]
        less_is_better = unit in ("ms", "MB")
        ratio = statistics.median(peer / attar if less_is_better else attar / peer for attar, peer in pairs)
        attar, peer = (statistics.median(side) for side in zip(*pairs, strict=True))
        return Row(f"{name}_{model}", unit, attar, peer, ratio, bar, None if bound is None else attar / bound)

    def decode_row(name: str, depth: int) -> Row:
        bound = machine.decode_bound(needs, depth)
        return row(name, "tokens/s", lambda m: m.decode[depth], decode_bar(model, depth), bound)

    planned = file_bytes + rounds[0][0].planned["cache_bytes"] + RSS_ROOM_BYTES
    peak = statistics.median(attar.peak_rss_bytes for attar, _ in rounds)
    plan = Row(f"rss_plan_{model}", "MB", peak / 1e6, planned / 1e6, planned / peak, 1.0)
    f16 = [attar.decode[DEPTH] for attar, _ in rounds]
    gain = statistics.median(fast / wide for fast, wide in zip(int8, f16, strict=True))
    over_f16 = Row(f"int8_gain_{model}", "tokens/s", statistics.median(int8), statistics.median(f16), gain, 1.0)
    prefill_bound = machine.prefill_bound(needs, 512)
    return [
        decode_row("decode_empty", 0),
        decode_row("decode_2048", DEPTH),
        row("prefill_512", "tokens/s", lambda m: m.prefill, prefill_bar(model), prefill_bound),
        row("load", "ms", lambda m: 1e3 * m.load_seconds, 1 / 0.6),
        row("rss", "MB", lambda m: m.peak_rss_bytes / 1e6, rss_bar(model)),
        plan,
        over_f16,
    ]


def measure_rounds(
    program: Path, driver: Path, path: Path, plan: BenchPlan, rounds: int, options: list[str]
) -> tuple[Rounds, list[float]]:
    """Rounds of attar and llama.cpp in turn, and of attar with an int8 cache; the file is in the page cache before."""
    path.read_bytes()
    found, int8 = [], []
    at_depth = replace(plan, prefill_tokens=LOADING.prefill_tokens, depths=(DEPTH,))
    for number in range(rounds):
        say(f"{path.name}: round {number + 1} of {rounds}")
        triples = [
            (
                measure_attar(program, path, plan, options),
                measure_llama(driver, path, plan, flash=flash),
                measure_attar(program, path, at_depth, [*options, *INT8]),
            )
            for flash in (True, False)
        ]
        attar, peer, narrow = (better(*side) for side in zip(*triples, strict=True))
        int8.append(narrow.decode[DEPTH])
        loads = [
            (measure_attar(program, path, LOADING, options), measure_llama(driver, path, LOADING, flash=False))
            for _ in range(LOADS)
        ]
        found.append((best_load(attar, [ours for ours, _ in loads]), best_load(peer, [theirs for _, theirs in loads])))
    return found, int8


def best_load(full: Measurement, loads: Sequence[Measurement]) -> Measurement:
    """The measurement with the shortest of all loads."""
    return replace(full, load_seconds=min(m.load_seconds for m in (full, *loads)))


def likelihood_rows(model: str, found: Likelihood) -> list[Row]:
    """Perplexity beside llama.cpp's, and what 8-bit activations cost."""
    ratio = found.peer_perplexity / found.perplexity
    kl_ratio = BITS_KL_BAR / max(found.kl_of_8_bits, 1e-12)
    return [
        Row(
            f"perplexity_{model}",
            "perplexity",
            found.perplexity,
            found.peer_perplexity,
            ratio,
            1 / (1 + PERPLEXITY_BAR),
        ),
        Row(f"kl_of_8_bits_{model}", "nats", found.kl_of_8_bits, BITS_KL_BAR, kl_ratio, 1.0),
    ]


def print_rows(rows: Sequence[Row], title: str) -> None:
    """One table; the verdict stands beside the bar."""
    table = [
        [
            row.name,
            f"{row.attar:,.4g} {row.unit}",
            f"{row.peer:,.4g}",
            f"{row.ratio:.2f}",
            "-" if row.bar is None else f"{row.bar:.2f} {'pass' if row.passed else 'FAIL'}",
            "-" if row.share is None else f"{row.share:.0%}",
        ]
        for row in rows
    ]
    out.print(make_table(title, ["", "attar", "llama.cpp", "ratio", "bar", "of bound"], table))


def describe(python: Path, machine: Machine, chosen: argparse.Namespace) -> dict[str, Any]:
    """What the figures were taken on and with."""
    return {
        "attar": library_version(),
        "llama_cpp_python": installed_version(python, "llama-cpp-python"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "machine": asdict(machine),
        "threads": chosen.threads,
        "num_rounds": chosen.rounds,
        "attar_options": chosen.attar_options,
    }


def cpu_name() -> str:
    """As the system spells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--attar-run", type=Path, help="the program to measure (default: beside this Python)")
    parser.add_argument(
        "--attar-options", default="", help='more options of attar-run, as one word: --attar-options="--kv int8"'
    )
    parser.add_argument("--perplexity", action="store_true", help="also compare likelihoods of 200 kB of English")
    parser.add_argument("--quick", action="store_true", help="one round of fewer takes on one model")
    parser.add_argument("--json", action="store_true")
    add_option(parser)
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds, chosen.models = 1, chosen.models[:1]
    return chosen


def main() -> int:
    """Prints the table, or one JSON object; exit status 1 where a bar is missed."""
    chosen = parse_arguments()
    python = peers_python(chosen.peers_python, LLAMA_CPP)
    driver, program = llama_driver(python), find_attar_run(chosen.attar_run)
    machine = best_machine(chosen.threads)
    plan = BenchPlan(threads=chosen.threads)
    if chosen.quick:
        plan = replace(plan, repeats=2, decode_tokens=24)
    rows: list[Row] = []
    measured: dict[str, Any] = {}
    for name in chosen.models:
        path = model_file(name, chosen.peers_python)
        rounds, int8 = measure_rounds(program, driver, path, plan, chosen.rounds, chosen.attar_options.split())
        rows += compare(name, rounds, int8, path.stat().st_size, needs_of(path), machine)
        measured[name] = [{"attar": asdict(attar), "llama_cpp": asdict(peer)} for attar, peer in rounds]
        if chosen.perplexity:
            rows += likelihood_rows(name, compare_likelihood(path, driver, chosen.threads, quick=chosen.quick))
    if chosen.json:
        ratios = {row.name: row.ratio for row in rows}
        found = {row.name: asdict(row) | {"passed": row.passed} for row in rows}
        print(json.dumps({"ratios": ratios, "rows": found, "rounds": measured} | describe(python, machine, chosen)))
    else:
        titles = ", ".join(TITLES[name] for name in chosen.models)
        print_rows(rows, f"{titles}; {chosen.threads} threads, {cpu_name()}")
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    run_command(main)
