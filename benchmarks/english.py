"""200 kB of English for perplexity: package descriptions of Debian, rebuilt by the recipe and kept in the cache."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from attar.distill.recipes.package_summaries import build
from benchmarks.peers import benchmark_cache
from benchmarks.runtime_models import say

TEXT_BYTES = 200_000


def english_text(num_bytes: int = TEXT_BYTES) -> str:
    """The first `num_bytes` of the held-out descriptions, a blank line between two.

    Without apt the bundled sample takes their place, which is shorter.
    """
    path = benchmark_cache() / "descriptions.txt"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            build(Path(folder), progress=say)
            splits = [Path(folder) / f"{split}.jsonl" for split in ("test", "validation", "train")]
            rows = [json.loads(line) for split in splits for line in split.read_text(encoding="utf-8").splitlines()]
        texts = [row["prompt"].rsplit("\n\n", 1)[0] for row in rows]
        path.write_text("\n\n".join(texts)[: 10 * TEXT_BYTES], encoding="utf-8")
    return path.read_bytes()[:num_bytes].decode("utf-8", "ignore")
