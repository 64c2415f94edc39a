"""LiteRT-LM on one model: load, prefill, decode at depths, memory; one line of JSON as attar-run --bench prints.

    python litert_driver.py bundle MODEL.tflite TOKENIZER.json BUNDLE.litertlm CONTEXT STOP_TOKEN
    python litert_driver.py bench BUNDLE.litertlm THREADS CONTEXT PREFILL DECODE REPEATS DEPTH...

Run by an interpreter that has litert-lm and nothing of attar. Figures are those of the library's own benchmark, which
makes an engine for each take; a depth is the prompt that is read before decoding. Its decode attends over the whole
cache, so the depth matters less than the context.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def peak_rss_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def bundle(model: str, tokenizer: str, out: str, context: str, stop: str) -> None:
    """Writes the container that LiteRT-LM opens around a .tflite file."""
    import litert_lm_builder as builder
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    metadata = llm_metadata_pb2.LlmMetadata(max_num_tokens=int(context))
    metadata.stop_tokens.add().token_ids.ids.append(int(stop))
    metadata.llm_model_type.generic_model.SetInParent()
    with tempfile.TemporaryDirectory() as folder:
        described = Path(folder) / "metadata.pb"
        described.write_bytes(metadata.SerializeToString())
        file = builder.LitertLmFileBuilder()
        author = builder.Metadata(key="author", value="attar", dtype=builder.DType.STRING)
        file.add_system_metadata(author)
        file.add_llm_metadata(str(described))
        file.add_hf_tokenizer(tokenizer)
        file.add_tflite_model(model, builder.TfLiteModelType.PREFILL_DECODE)
        with Path(out).open("wb") as stream:
            file.build(stream)
    print(json.dumps({"bytes": Path(out).stat().st_size}))


def bench(path: str, threads: int, context: int, prefill: int, decode: int, repeats: int, *depths: int) -> None:
    """Prints the figures; the speeds are medians' raw material, one a take."""
    start_rss = peak_rss_bytes()
    import litert_lm

    def take(prompt: int, tokens: int) -> Any:
        settings: dict[str, Any] = {"prefill_tokens": prompt, "decode_tokens": tokens, "max_num_tokens": context}
        backend = litert_lm.Backend.CPU(thread_count=threads)
        return litert_lm.Benchmark(path, backend, cache_dir=":nocache", **settings).run()

    started = time.perf_counter()
    first = take(prefill, 1)
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
    print(json.dumps(result | {"peak_rss_bytes": peak_rss_bytes()}))


if __name__ == "__main__":
    if sys.argv[1] == "bundle":
        bundle(*sys.argv[2:])
    else:
        bench(sys.argv[2], *map(int, sys.argv[3:]))
