"""How fast can this machine be at all? Its read bandwidth and 8-bit peak, and each model's bound from both.

    python -m benchmarks.roofline [--models ...] [--threads N] [--json] [--plot FILE]

A decoded token cannot take less time than reading its bytes at the bandwidth measured for a buffer of that size; a
prompt not less than its multiply-adds at the peak of the multiply instruction, attention counted at the same rate.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from attar.cli._console import make_table, out
from attar.runtime.native import kernels_name
from benchmarks.bounds import Needs, needs_of
from benchmarks.command import count, run_command
from benchmarks.peers import add_option, benchmark_cache, build_program, run_json
from benchmarks.runtime_models import MODELS, TITLES, model_file
from benchmarks.runtime_process import BenchPlan, Measurement, find_attar_run, measure_attar

PROBE_SOURCE = Path(__file__).with_name("roofline_probe.c")
SIZES = (24_000_000, 96_000_000, 384_000_000, 1_000_000_000)
PREFILL_TOKENS = 512
DEPTHS = (0, 128, 512, 2048)


@dataclass(frozen=True)
class Machine:
    """Limits with a number of threads.

    Attributes:
      bytes_per_second: By size of the buffer that is read; smaller ones may stay in a cache.
    """

    threads: int
    kernels: str
    int8_macs_per_second: float
    bytes_per_second: Mapping[int, float]

    def bandwidth(self, num_bytes: float) -> float:
        """For a working set of `num_bytes`, from the largest buffer that is no larger: never less than it gets."""
        fitting = [size for size in self.bytes_per_second if size <= num_bytes]
        return self.bytes_per_second[max(fitting) if fitting else min(self.bytes_per_second)]

    def decode_bound(self, needs: Needs, depth: int, cache_bytes_per_value: float = 2) -> float:
        """Tokens a second that bandwidth allows."""
        num_bytes = needs.decode_bytes(depth, cache_bytes_per_value)
        return self.bandwidth(num_bytes) / num_bytes

    def prefill_bound(self, needs: Needs, tokens: int) -> float:
        """Tokens a second that the multiply instruction allows; infinite where the CPU has none."""
        if not self.int8_macs_per_second:
            return float("inf")
        return tokens * self.int8_macs_per_second / needs.prefill_macs(tokens)


def measure_machine(threads: int, kernels: str | None = None, sizes: Sequence[int] = SIZES) -> Machine:
    """Runs the probe with so many threads.

    Args:
      kernels: Table whose multiply instruction counts; None takes the one attar chose for this CPU.
    """
    kernels = kernels or kernels_name()
    probe = build_program(PROBE_SOURCE, "roofline_probe", ["-pthread"], [PROBE_SOURCE.with_name("int8_peak.h")])
    raw = run_json([probe, kernels, str(threads), *map(str, sizes)], "roofline_probe")
    rates = raw["bytes_per_second"]
    return Machine(threads, kernels, raw["int8_macs_per_second"], {int(size): rate for size, rate in rates.items()})


def best_machine(threads: int) -> Machine:
    """Measures, and keeps the best that was ever measured on this host: a busy moment must not lower a bound."""
    path = benchmark_cache() / f"roofline-{os.uname().nodename}-{threads}.json"
    machine = measure_machine(threads)
    if path.exists():
        machine = merge_best(machine, json.loads(path.read_text()))
    path.write_text(json.dumps(asdict(machine)))
    return machine


def merge_best(machine: Machine, known: Mapping[str, Any]) -> Machine:
    """The better of two measurements, limit by limit; `known` is another machine's `asdict` after a trip as JSON."""
    if known["kernels"] != machine.kernels:
        return machine
    rates = {int(size): rate for size, rate in known["bytes_per_second"].items()}
    return Machine(
        machine.threads,
        machine.kernels,
        max(machine.int8_macs_per_second, known["int8_macs_per_second"]),
        {size: max(rate, rates.get(size, 0.0)) for size, rate in machine.bytes_per_second.items()},
    )


@dataclass(frozen=True)
class Phase:
    """One model's figure in one phase beside its bound, both in tokens a second.

    Attributes:
      num_bytes: Read for one token; of a prompt, the weights once shared out among its tokens.
      macs: Multiply-adds of one token.
    """

    name: str
    num_bytes: float
    macs: float
    bound: float
    measured: float

    @property
    def share(self) -> float:
        return self.measured / self.bound


def phases_of(machine: Machine, needs: Needs, measured: Measurement) -> list[Phase]:
    """The phases of a model that were measured."""
    phases = [
        Phase(
            f"decode_{depth}",
            needs.decode_bytes(depth),
            needs.decode_macs(depth),
            machine.decode_bound(needs, depth),
            speed,
        )
        for depth, speed in measured.decode.items()
    ]
    macs = needs.prefill_macs(PREFILL_TOKENS) / PREFILL_TOKENS
    bound = machine.prefill_bound(needs, PREFILL_TOKENS)
    prefill = Phase(f"prefill_{PREFILL_TOKENS}", needs.weight_bytes / PREFILL_TOKENS, macs, bound, measured.prefill)
    return [prefill, *phases]


def measure_models(
    names: Sequence[str], program: Path, python: Path | None, machine: Machine
) -> dict[str, list[Phase]]:
    """attar's figures of each model, in processes of their own."""
    plan = BenchPlan(threads=machine.threads, depths=DEPTHS, prefill_tokens=PREFILL_TOKENS)
    found = {}
    for name in names:
        path = model_file(name, python)
        found[name] = phases_of(machine, needs_of(path), measure_attar(program, path, plan))
    return found


def print_tables(machines: Sequence[Machine], models: Mapping[str, Sequence[Phase]]) -> None:
    """The machine's limits, then every model's phases."""
    sizes = sorted(machines[0].bytes_per_second)
    rows = [
        [f"{m.threads}", *(f"{m.bytes_per_second[s] / 1e9:.1f}" for s in sizes), f"{m.int8_macs_per_second / 1e9:.0f}"]
        for m in machines
    ]
    columns = ["threads", *(f"GB/s, {size / 1e6:.0f} MB" for size in sizes), f"int8 GMAC/s ({machines[0].kernels})"]
    out.print(make_table("This machine", columns, rows))
    rows = [
        [
            f"{TITLES[name]}: {phase.name}",
            f"{phase.num_bytes / 1e6:.1f}",
            f"{phase.macs / 1e6:.0f}",
            f"{phase.bound:.0f}",
            f"{phase.measured:.0f}",
            f"{phase.share:.0%}",
        ]
        for name, phases in models.items()
        for phase in phases
    ]
    columns = ["model and phase", "MB/token", "MMAC/token", "bound, tokens/s", "attar, tokens/s", "share"]
    out.print(make_table(f"Bounds and figures, {machines[-1].threads} threads", columns, rows))


def plot(path: Path, machine: Machine, models: Mapping[str, Sequence[Phase]]) -> None:
    """The classic picture: multiply-adds a second over multiply-adds a byte, with both roofs."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    intensity = [0.5 * 2**i for i in range(14)]
    for size in (min(machine.bytes_per_second), max(machine.bytes_per_second)):
        rate = machine.bytes_per_second[size]
        roof = [min(x * rate, machine.int8_macs_per_second) / 1e9 for x in intensity]
        axes.plot(intensity, roof, color="0.5", lw=1)
        label = f"{rate / 1e9:.0f} GB/s, {size / 1e6:.0f} MB"
        axes.annotate(label, (intensity[0], roof[0]), fontsize=7, rotation=38, va="bottom", color="0.35")
    for name, phases in models.items():
        points = [(phase.macs / phase.num_bytes, phase.macs * phase.measured / 1e9) for phase in phases]
        axes.scatter(*zip(*points, strict=True), s=22, label=TITLES[name])
    axes.set(xscale="log", yscale="log", xlabel="multiply-adds per byte read", ylabel="10^9 multiply-adds per second")
    axes.set_title(
        f"attar, {machine.threads} threads, {machine.kernels}: decoding (left) and prefill (right)", fontsize=9
    )
    axes.legend(fontsize=7, loc="lower right")
    axes.grid(alpha=0.2, which="both")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> int:
    """Prints two tables, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--attar-run", type=Path, help="the program to measure (default: beside this Python)")
    parser.add_argument("--plot", type=Path, help="also draw the roofline to this file")
    parser.add_argument("--quick", action="store_true", help="one model only")
    parser.add_argument("--json", action="store_true")
    add_option(parser)
    chosen = parser.parse_args()
    names = chosen.models[:1] if chosen.quick else chosen.models
    machines = [best_machine(threads) for threads in sorted({1, chosen.threads})]
    models = measure_models(names, find_attar_run(chosen.attar_run), chosen.peers_python, machines[-1])
    if chosen.plot:
        plot(chosen.plot, machines[-1], models)
    if chosen.json:
        found = {
            name: {phase.name: asdict(phase) | {"share": phase.share} for phase in phases}
            for name, phases in models.items()
        }
        print(json.dumps({"machines": [asdict(machine) for machine in machines], "models": found}))
    else:
        print_tables(machines, models)
    return 0


if __name__ == "__main__":
    run_command(main)
