"""One measurement in a process of its own: attar-run --bench, or llama.cpp through its driver, with the same plan."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.peers import PeerError, run_json


@dataclass(frozen=True)
class BenchPlan:
    """What each process measures. Lengths in tokens.

    Attributes:
      context_length: Of the session; a multiple of 256, to which llama.cpp would round it.
      repeats: Takes of each figure within a process; the best counts, since other programs can only slow a take down.
    """

    prefill_tokens: int = 512
    decode_tokens: int = 48
    depths: tuple[int, ...] = (0, 2048)
    repeats: int = 3
    threads: int = 2
    context_length: int = 2304


@dataclass(frozen=True)
class Measurement:
    """Figures of one process. Speeds in tokens a second.

    Attributes:
      planned: attar's own plan: weight_bytes, cache_bytes, scratch_bytes; empty for a peer.
      start_rss_bytes: Peak before anything is loaded: what the program itself or its interpreter weighs.
    """

    load_seconds: float
    prefill: float
    decode: Mapping[int, float]
    peak_rss_bytes: int
    start_rss_bytes: int
    kernels: str = ""
    planned: Mapping[str, int] = field(default_factory=dict)


def parse(raw: Mapping[str, Any]) -> Measurement:
    """A measurement from the JSON that attar-run and the drivers print."""
    return Measurement(
        load_seconds=raw["load_seconds"],
        prefill=max(raw.get("prefill_tokens_per_second", [0.0])),
        decode={int(depth): max(takes) for depth, takes in raw["decode_tokens_per_second"].items()},
        peak_rss_bytes=raw["peak_rss_bytes"],
        start_rss_bytes=raw["start_rss_bytes"],
        kernels=raw.get("kernels", ""),
        planned={key: raw[key] for key in ("weight_bytes", "cache_bytes", "scratch_bytes") if key in raw},
    )


def find_attar_run(chosen: Path | None) -> Path:
    """attar-run: the chosen one, $ATTAR_RUN, the one installed beside this Python, or the one on PATH.

    Raises:
      PeerError: If there is none, or the chosen one is no program.
    """
    if chosen is not None or "ATTAR_RUN" in os.environ:
        program = Path(chosen or os.environ["ATTAR_RUN"])
        if not os.access(program, os.X_OK) or program.is_dir():
            raise PeerError(f"{program}: not a program; give attar-run's path by --attar-run or $ATTAR_RUN")
        return program
    for folder in (str(Path(sys.executable).parent), sysconfig.get_path("scripts"), None):
        found = shutil.which("attar-run", path=folder)
        if found:
            return Path(found)
    raise PeerError("attar-run is not beside this Python nor on PATH; install attar, or give --attar-run")


def measure_attar(program: Path, model: Path, plan: BenchPlan, options: Sequence[str] = ()) -> Measurement:
    """Runs attar-run --bench on a GGUF.

    Args:
      options: Further options of attar-run, such as `--kv int8`.
    """
    command = [str(program), str(model), "--bench", "--threads", str(plan.threads), "--ctx", str(plan.context_length)]
    command += ["--prefill", str(plan.prefill_tokens), "-n", str(plan.decode_tokens), "--repeat", str(plan.repeats)]
    command += [word for depth in plan.depths for word in ("--depth", str(depth))]
    return parse(run_json([*command, *options], f"attar on {model.name}"))


def measure_llama(driver: Path, model: Path, plan: BenchPlan, *, flash: bool) -> Measurement:
    """Runs llama.cpp on a GGUF, with or without its flash attention."""
    figures = (plan.threads, plan.context_length, int(flash), plan.prefill_tokens, plan.decode_tokens, plan.repeats)
    command = [str(driver), "bench", str(model), *map(str, figures), *map(str, plan.depths)]
    return parse(run_json(command, f"llama.cpp on {model.name}"))


def better(first: Measurement, second: Measurement) -> Measurement:
    """Each figure's better one of two ways to run the same peer; no single run has to win them all."""
    return replace(
        first,
        load_seconds=min(first.load_seconds, second.load_seconds),
        prefill=max(first.prefill, second.prefill),
        decode={depth: max(speed, second.decode[depth]) for depth, speed in first.decode.items()},
        peak_rss_bytes=min(first.peak_rss_bytes, second.peak_rss_bytes),
        start_rss_bytes=min(first.start_rss_bytes, second.start_rss_bytes),
    )
