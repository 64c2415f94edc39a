"""Measures a model file on its backend: load, time to first token, prefill, decode at depths, memory, size.

`measure` runs in the calling process; `measure_in_subprocess` gives each file a fresh one, so that peak memory and
load time are its own. `python -m attar.runtime.bench FILE` is that process: it prints one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from attar.runtime.session import Session, SessionError, backend_of, open_session

FIRST_TOKEN_PROMPT = 128


@dataclass(frozen=True)
class BenchPlan:
    """What to measure. Lengths in tokens.

    Attributes:
      prefill_tokens: Prompt length of the prefill figure.
      depths: Context depths at which decoding is timed; those beyond the context are left out.
      decode_tokens: Tokens decoded at each depth.
      repeats: Times each figure is taken; the median is reported.
    """

    prefill_tokens: int = 512
    depths: tuple[int, ...] = (0, 512, 2048)
    decode_tokens: int = 48
    repeats: int = 3
    threads: int | None = None
    context_length: int | None = None


@dataclass(frozen=True)
class BenchResult:
    """Figures of one file. Speeds in tokens a second, times in seconds."""

    path: str
    backend: str
    file_bytes: int
    load_seconds: float
    first_token_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: dict[int, float]
    peak_rss_bytes: int
    baseline_rss_bytes: int
    cache_bytes: int | None
    context_length: int
    threads: int | None


def measure(path: Path, plan: BenchPlan) -> BenchResult:
    """Opens the file and takes every figure in this process.

    Raises:
      SessionError: If the file cannot be run.
    """
    baseline = peak_rss_bytes()
    needed = max(plan.prefill_tokens, *(d + plan.decode_tokens for d in plan.depths), FIRST_TOKEN_PROMPT + 1)
    started = time.perf_counter()
    session = open_session(path, context_length=plan.context_length or needed, threads=plan.threads)
    load_seconds = time.perf_counter() - started
    with session:
        room = session.context_length
        depths = [depth for depth in plan.depths if depth + plan.decode_tokens <= room]
        first = _median(plan.repeats, lambda: _time_first_token(session, min(FIRST_TOKEN_PROMPT, room - 1)))
        prompt = min(plan.prefill_tokens, room)
        prefill = _median(plan.repeats, lambda: _time_prefill(session, prompt))
        decode = {depth: _decode_speed(session, depth, plan) for depth in depths}
        return BenchResult(
            path=str(path),
            backend=backend_of(path),
            file_bytes=size_bytes(path),
            load_seconds=load_seconds,
            first_token_seconds=first,
            prefill_tokens_per_second=prompt / prefill,
            decode_tokens_per_second=decode,
            peak_rss_bytes=peak_rss_bytes(),
            baseline_rss_bytes=baseline,
            cache_bytes=session.memory().cache_bytes,
            context_length=room,
            threads=plan.threads,
        )


def measure_in_subprocess(path: Path, plan: BenchPlan) -> BenchResult:
    """`measure` in a fresh Python process.

    Raises:
      SessionError: If the file cannot be run, with the child's own message.
    """
    command = [sys.executable, "-m", "attar.runtime.bench", str(path), json.dumps(dataclasses.asdict(plan))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode} and said nothing"]
        raise SessionError(lines[-1])
    raw = json.loads(done.stdout.strip().splitlines()[-1])
    raw["decode_tokens_per_second"] = {int(d): v for d, v in raw["decode_tokens_per_second"].items()}
    return BenchResult(**raw)


def peak_rss_bytes() -> int:
    """Highest resident size of this process (VmHWM; ru_maxrss would count the parent's pages after a vfork)."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of the model files in a folder (tokenizer and reports left out)."""
    if path.is_file():
        beside = path.with_name(path.name + ".data")  # ONNX external weights
        return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)
    return sum(p.stat().st_size for p in path.iterdir() if p.name.startswith("model.onnx"))


def _median(repeats: int, take: Callable[[], float]) -> float:
    return statistics.median(take() for _ in range(max(1, repeats)))


def _prompt(session: Session, length: int) -> list[int]:
    """Token ids spread over the vocabulary, the same for every backend; speed does not depend on their meaning."""
    return [(7919 * i + 13) % session.vocab_size for i in range(length)]


def _time_first_token(session: Session, length: int) -> float:
    session.rewind(0)
    tokens = _prompt(session, length)
    started = time.perf_counter()
    session.prefill(tokens).argmax()
    return time.perf_counter() - started


def _time_prefill(session: Session, length: int) -> float:
    session.rewind(0)
    tokens = _prompt(session, length)
    started = time.perf_counter()
    session.prefill(tokens)
    return time.perf_counter() - started


def _decode_speed(session: Session, depth: int, plan: BenchPlan) -> float:
    """Greedy decoding after `depth` tokens; the cache is filled once and rewound between repeats where it can be."""
    session.rewind(0)
    if depth:
        session.prefill(_prompt(session, depth))
    seconds = []
    for _ in range(max(1, plan.repeats)):
        token = 1
        started = time.perf_counter()
        for _ in range(plan.decode_tokens):
            token = int(session.decode(token).argmax())
        seconds.append(time.perf_counter() - started)
        _return_to(session, depth)
    return plan.decode_tokens / statistics.median(seconds)


def _return_to(session: Session, depth: int) -> None:
    try:
        session.rewind(depth)
    except SessionError:  # a local layer's ring has moved on: fill it again
        session.rewind(0)
        session.prefill(_prompt(session, depth))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures one file and writes the result to standard output as JSON."""
    parser = argparse.ArgumentParser(prog="python -m attar.runtime.bench", description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("plan", nargs="?", default="{}", help="BenchPlan fields as JSON")
    chosen = parser.parse_args(arguments)
    raw = json.loads(chosen.plan)
    raw["depths"] = tuple(raw.get("depths", BenchPlan.depths))
    try:
        result = measure(chosen.path, BenchPlan(**raw))
    except SessionError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(dataclasses.asdict(result)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
