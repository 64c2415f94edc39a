"""LiteRT-LM on one model: load, prefill, decode at depths, memory; one line of JSON as attar-run --bench prints.

    python litert_driver.py BUNDLE.litertlm THREADS CONTEXT PREFILL DECODE REPEATS DEPTH...

Run by an interpreter that has litert-lm and nothing of attar. Figures are those of the library's own benchmark, which
makes an engine for each take; a depth is the prompt that is read before decoding. Its decode attends over the whole
cache, so the depth matters less than the context. Memory is taken after the first engine, which reads and decodes as
much as any: those after it would add what the library keeps.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def peak_rss_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def bench(path: str, threads: int, context: int, prefill: int, decode: int, repeats: int, *depths: int) -> None:
    """Prints the figures; the speeds are medians' raw material, one a take."""
    start_rss = peak_rss_bytes()
    import litert_lm

    def take(prompt: int, tokens: int) -> Any:
        settings: dict[str, Any] = {"prefill_tokens": prompt, "decode_tokens": tokens, "max_num_tokens": context}
        backend = litert_lm.Backend.CPU(thread_count=threads)
        return litert_lm.Benchmark(path, backend, cache_dir=":nocache", **settings).run()

    started = time.perf_counter()
    first = take(prefill, decode)
    peak_rss = peak_rss_bytes()
    loaded = first.init_time_in_second or time.perf_counter() - started
    result = {
        "threads": threads,
        "context_length": context,
        "load_seconds": loaded,
        "prefill_tokens_per_second": [take(prefill, 1).last_prefill_tokens_per_second for _ in range(repeats)],
        "decode_tokens_per_second": {
            depth: [take(depth, decode).last_decode_tokens_per_second for _ in range(repeats)] for depth in depths
        },
        "start_rss_bytes": start_rss,
    }
    print(json.dumps(result | {"peak_rss_bytes": peak_rss}))


if __name__ == "__main__":
    bench(sys.argv[1], *map(int, sys.argv[2:]))
