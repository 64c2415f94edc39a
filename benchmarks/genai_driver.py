"""onnxruntime-genai on one folder: load, prefill, decode at depths, memory; one line of JSON, as attar-run's.

    python genai_driver.py FOLDER THREADS CONTEXT PREFILL DECODE REPEATS DEPTH...

Run by an interpreter that has onnxruntime-genai and nothing of attar. Tokens are taken greedily by the library's own
loop, its fastest way to decode; the end of text is kept out by a minimum length.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np


def peak_rss_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    folder, threads, context, prefill, decode, repeats, *depths = (sys.argv[1], *map(int, sys.argv[2:]))
    start_rss = peak_rss_bytes()
    import onnxruntime_genai as og

    started = time.perf_counter()
    config = og.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=context, min_length=context, do_sample=False)
    generator = og.Generator(model, params)
    load_seconds = time.perf_counter() - started
    vocabulary = json.loads((Path(folder) / "genai_config.json").read_text())["model"]["vocab_size"]
    ids = ((7919 * np.arange(context) + 13) % vocabulary).astype(np.int32)

    def read(tokens: int) -> float:
        generator.rewind_to(0)
        began = time.perf_counter()
        generator.append_tokens(ids[:tokens])
        return time.perf_counter() - began

    def speak(depth: int) -> float:
        read(max(1, depth))
        generator.generate_next_token()  # only draws from the prompt's logits
        began = time.perf_counter()
        for _ in range(decode):
            generator.generate_next_token()
        return time.perf_counter() - began

    result = {
        "threads": threads,
        "context_length": context,
        "load_seconds": load_seconds,
        "prefill_tokens_per_second": [prefill / read(prefill) for _ in range(repeats)],
        "decode_tokens_per_second": {depth: [decode / speak(depth) for _ in range(repeats)] for depth in depths},
        "start_rss_bytes": start_rss,
    }
    print(json.dumps(result | {"peak_rss_bytes": peak_rss_bytes()}))


if __name__ == "__main__":
    main()
