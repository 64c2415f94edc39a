"""The C runtime against the runtimes that phones use today, on the same weights at about four and eight bits.

    python -m benchmarks.device_peers [--quick] [--json]

SmolLM2-135M from the same weights: attar and llama.cpp run the GGUF (Q4_0, Q8_0), onnxruntime-genai the folders of its
own builder (blocks of 32, with the head over all positions and over the last) and LiteRT-LM the bundles of its own
exporter (four bits by blocks of 32, eight bits a channel).

Every figure comes from a fresh process, all with one context; processes alternate for some rounds and the median over
rounds of the ratio to that round's best peer counts, above 1 being better for attar. Memory is the peak less what the
program, or its interpreter, weighed before it loaded anything. Ratios without a width compare the best of both widths.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from attar.cli._console import make_table, out
from attar.runtime.native import library_version
from benchmarks.command import count, run_command
from benchmarks.converters import add_option as add_converters_option
from benchmarks.converters import genai_folder, litert_bundle
from benchmarks.llama_cpp import cpu_name
from benchmarks.peers import (
    LITERT_LM,
    LLAMA_CPP,
    ONNX_GENAI,
    add_option,
    installed_version,
    llama_driver,
    peers_python,
    run_json,
)
from benchmarks.runtime_models import model_file, say
from benchmarks.runtime_process import (
    BenchPlan,
    Measurement,
    better,
    find_attar_run,
    measure_attar,
    measure_llama,
    parse,
)

DEPTHS = (128, 512)
WIDTHS = (4, 8)
BARS = {"decode_128": 1.1, "decode_512": 1.1, "prefill_512": 1.0, "rss": 1.0}
HERE = Path(__file__).parent

# What a round found: measurements by runtime, "attar" among them.
Round = Mapping[str, Measurement]


@dataclass(frozen=True)
class Contestant:
    """One runtime at one width."""

    runtime: str
    width: int
    run: Callable[[BenchPlan], Measurement]


def contestants(chosen: argparse.Namespace, context: int) -> list[Contestant]:
    """Everything that runs, with its files made."""
    python = peers_python(chosen.peers_python, [*LLAMA_CPP, *ONNX_GENAI, *LITERT_LM])
    program, driver = find_attar_run(chosen.attar_run), llama_driver(python)

    def driven(name: str, model: Path) -> Callable[[BenchPlan], Measurement]:
        return lambda plan: _measure(python, name, model, plan)

    found = []
    for width, name in zip(WIDTHS, ("smollm2_q4_0", "smollm2_q8_0"), strict=True):
        gguf = model_file(name, chosen.peers_python)
        folder, pruned = (genai_folder(chosen.converters_python, width, prune_head=prune) for prune in (False, True))
        bundle = litert_bundle(chosen.converters_python, width, context)
        found += [
            Contestant("attar", width, lambda plan, gguf=gguf: measure_attar(program, gguf, plan)),
            Contestant("llama.cpp", width, lambda plan, gguf=gguf: _best_llama(driver, gguf, plan)),
            Contestant("genai", width, driven("genai_driver.py", folder)),
            Contestant("genai, head of one", width, driven("genai_driver.py", pruned)),
            Contestant("LiteRT-LM", width, driven("litert_driver.py", bundle)),
        ]
    return found


def _measure(python: Path, driver: str, model: Path, plan: BenchPlan) -> Measurement:
    figures = (plan.threads, plan.context_length, plan.prefill_tokens, plan.decode_tokens, plan.repeats, *plan.depths)
    return parse(run_json([python, HERE / driver, model, *map(str, figures)], f"{driver} on {model.name}"))


def _best_llama(driver: Path, model: Path, plan: BenchPlan) -> Measurement:
    runs = [measure_llama(driver, model, plan, flash=flash) for flash in (True, False)]
    return better(*runs)


def loaded_bytes(measurement: Measurement) -> int:
    """Peak memory without the program's or interpreter's own."""
    return measurement.peak_rss_bytes - measurement.start_rss_bytes


FIGURES: dict[str, Callable[[Measurement], float]] = {
    "decode_128": lambda m: m.decode[128],
    "decode_512": lambda m: m.decode[512],
    "prefill_512": lambda m: m.prefill,
    "rss": lambda m: -float(loaded_bytes(m)),  # negated: less is better
}


def ratio_of(name: str, attar: Sequence[Measurement], peers: Sequence[Measurement]) -> float:
    """attar's best against the peers' best in one figure; above 1 is better for attar."""
    figure = FIGURES[name]
    mine, theirs = max(map(figure, attar)), max(map(figure, peers))
    return theirs / mine if name == "rss" else mine / theirs


def ratios_of(rounds: Sequence[Mapping[int, Round]]) -> dict[str, float]:
    """Medians over rounds: each figure over both widths, and `_4_bits`, `_8_bits` within one."""
    found = {}
    for name in FIGURES:
        for suffix, widths in (("", WIDTHS), *((f"_{width}_bits", (width,)) for width in WIDTHS)):
            found[name + suffix] = statistics.median(
                ratio_of(
                    name,
                    [one[width]["attar"] for width in widths],
                    [m for width in widths for runtime, m in one[width].items() if runtime != "attar"],
                )
                for one in rounds
            )
    return found


def print_tables(rounds: Sequence[Mapping[int, Round]], ratios: Mapping[str, float], threads: int) -> None:
    """Every runtime's medians, then attar against the best of the others."""
    rows = []
    for width in WIDTHS:
        for runtime in rounds[0][width]:
            runs = [one[width][runtime] for one in rounds]

            def middle(figure: Callable[[Measurement], float], runs: Sequence[Measurement] = runs) -> float:
                return statistics.median(map(figure, runs))

            rows.append(
                [
                    f"{runtime}, {width} bits",
                    f"{middle(FIGURES['decode_128']):.0f}",
                    f"{middle(FIGURES['decode_512']):.0f}",
                    f"{middle(FIGURES['prefill_512']):.0f}",
                    f"{middle(loaded_bytes) / 1e6:.0f}",
                    f"{middle(lambda m: m.start_rss_bytes) / 1e6:.0f}",
                    f"{1e3 * middle(lambda m: m.load_seconds):.0f}",
                ]
            )
    columns = ["tokens/s, MB, ms", "decode at 128", "at 512", "prefill 512", "peak RSS", "before loading", "load"]
    out.print(make_table(f"SmolLM2-135M, {threads} threads, {cpu_name()}", columns, rows))
    verdicts = [
        [name, f"{ratio:.2f}", f"{BARS[name]:.2f} {'pass' if ratio >= BARS[name] else 'FAIL'}" if name in BARS else "-"]
        for name, ratio in ratios.items()
    ]
    out.print(make_table("attar against the best of the peers", ["", "ratio", "bar"], verdicts))


def main() -> int:
    """Prints two tables, or one JSON object; exit status 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--attar-run", type=Path, help="the program to measure (default: beside this Python)")
    parser.add_argument("--quick", action="store_true", help="one round of fewer takes")
    parser.add_argument("--json", action="store_true")
    add_option(parser)
    add_converters_option(parser)
    chosen = parser.parse_args()
    plan = BenchPlan(threads=chosen.threads, depths=DEPTHS, context_length=1024)
    if chosen.quick:
        plan, chosen.rounds = replace(plan, repeats=1, decode_tokens=24), 1
    everyone = contestants(chosen, plan.context_length)
    rounds: list[dict[int, dict[str, Measurement]]] = []
    for number in range(chosen.rounds):
        say(f"round {number + 1} of {chosen.rounds}")
        found: dict[int, dict[str, Measurement]] = {width: {} for width in WIDTHS}
        for contestant in everyone:
            found[contestant.width][contestant.runtime] = contestant.run(plan)
        rounds.append(found)
    ratios = ratios_of(rounds)
    if chosen.json:
        python = peers_python(chosen.peers_python, [])
        names = [requirement.split("==")[0] for requirement in (*LLAMA_CPP, *ONNX_GENAI, *LITERT_LM)]
        versions = {"attar": library_version(), **{name: installed_version(python, name) for name in names}}
        runs = [{width: {k: asdict(m) for k, m in one[width].items()} for width in WIDTHS} for one in rounds]
        asked = {"threads": chosen.threads, "num_rounds": chosen.rounds}
        print(json.dumps({"ratios": ratios, "rounds": runs, "versions": versions, "cpu": cpu_name()} | asked))
    else:
        print_tables(rounds, ratios, chosen.threads)
    return 0 if all(ratios[name] >= bar for name, bar in BARS.items()) else 1


if __name__ == "__main__":
    run_command(main)
