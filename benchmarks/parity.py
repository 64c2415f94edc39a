"""Does the C runtime compute the model that JAX computes? Greedy tokens, distributions and perplexity on real weights.

    python -m benchmarks.parity smollm2 gemma3-270m

For each model (a name that `attar pull` brought, or a GGUF): the C runtime answers prompts greedily; then JAX, on the
same dequantised weights, reads prompt and answer, and every position is compared. A choice counts as the same when
JAX's logit of it is within 0.05 of JAX's best. Perplexity is taken over text in windows longer than the local
attention's.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attar.distill.evaluate_device import generate_with_session
from attar.distill.recipes.package_summaries import read_sample
from attar.engine.checkpoint import load_model
from attar.export.verify_compare import NEAR_TIE_LOGITS, ReferenceLogits, compare_logits
from attar.runtime.hub import resolve
from attar.runtime.native import NativeSession
from attar.runtime.session import NativeOptions
from benchmarks.command import count, run_command


@dataclass(frozen=True)
class Parity:
    """Figures of one model.

    Attributes:
      differing: Positions whose choices differ by more than a near-tie, of `positions`, prompts and answers together.
      greedy_differing: The same among the answers' tokens alone.
      kl: Mean KL(JAX ‖ C) in nats.
      perplexity_ratio: C over JAX, on the text.
    """

    model: str
    activation_bits: int
    prompts: int
    positions: int
    differing: int
    greedy_tokens: int
    greedy_differing: int
    max_logit_error: float
    kl: float
    text_bytes: int
    text_windows: int
    window_tokens: int
    perplexity: float
    perplexity_jax: float
    perplexity_ratio: float
    seconds: float


def measure(name: str, num_prompts: int, new_tokens: int, text_bytes: int, window: int, bits: int) -> Parity:
    """Compares one model; the text is that of the bundled package descriptions."""
    started = time.perf_counter()
    path = resolve(name)
    model = load_model(path)
    tokenizer, texts = model.tokenizer, [pair.document for pair in read_sample()]
    options = NativeOptions(activation_bits=bits)
    with NativeSession.open(path, context_length=max(window, 512) + new_tokens, options=options) as session:
        prompts, answers = [], []
        for text in texts[:num_prompts]:
            prompt = tokenizer.encode(text, add_special=True)[:400]
            prompts.append(prompt)
            answers.append(generate_with_session(session, prompt, new_tokens, model.config.eos_token_ids))
        greedy = _compare_answers(model, session, prompts, answers)
        asked = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        whole = compare_logits(model.config, model.params, session, asked)
        text = "\n\n".join(texts)[:text_bytes]
        ids = tokenizer.encode(text)
        windows = [ids[i : i + window] for i in range(0, len(ids), window)]
        head = [model.config.bos_token_id] if tokenizer.add_bos and model.config.bos_token_id is not None else []
        figures = compare_logits(
            model.config, model.params, session, [head + part for part in windows if len(part) > 1]
        )
    return Parity(
        model=name,
        activation_bits=bits,
        prompts=len(prompts),
        positions=whole.positions,
        differing=whole.positions - whole.agreed,
        greedy_tokens=sum(map(len, answers)),
        greedy_differing=greedy,
        max_logit_error=whole.max_abs_error,
        kl=whole.kl / whole.positions,
        text_bytes=len(text.encode()),
        text_windows=len(windows),
        window_tokens=window,
        perplexity=math.exp(figures.measured_nll),
        perplexity_jax=math.exp(figures.reference_nll),
        perplexity_ratio=math.exp(figures.measured_nll - figures.reference_nll),
        seconds=time.perf_counter() - started,
    )


def _compare_answers(model: Any, session: NativeSession, prompts: list[list[int]], answers: list[list[int]]) -> int:
    """Answer tokens that JAX would not have chosen after the same tokens, near-ties apart."""
    differing = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        if not answer:
            continue
        reference = ReferenceLogits(model.config, model.params, prompt + answer)
        rows = reference.rows(len(prompt) - 1, len(prompt) - 1 + len(answer))
        chosen = rows[np.arange(len(answer)), answer]
        differing += int((chosen < rows.max(axis=1) - NEAR_TIE_LOGITS).sum())
    return differing


def main() -> int:
    """Prints a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="names that attar pull brought, or GGUF files")
    parser.add_argument("--prompts", type=count, default=50)
    parser.add_argument("--tokens", type=count, default=32, help="greedy tokens a prompt (default 32)")
    parser.add_argument("--text-bytes", type=count, default=20_000)
    parser.add_argument("--window", type=count, default=1024, help="tokens of a perplexity window (default 1024)")
    parser.add_argument(
        "--activation-bits", type=int, default=16, choices=[8, 16], help="precision of the C runtime (default 16)"
    )
    parser.add_argument("--quick", action="store_true", help="4 prompts and 2 kB, for a look")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    prompts, text_bytes = (4, 2000) if chosen.quick else (chosen.prompts, chosen.text_bytes)
    results = [
        measure(name, prompts, chosen.tokens, text_bytes, chosen.window, chosen.activation_bits)
        for name in chosen.models
    ]
    if chosen.json:
        print(json.dumps({"results": [asdict(result) for result in results]}))
        return 0
    for result in results:
        print(Path(result.model).name)
        for key, value in asdict(result).items():
            if key != "model":
                print(f"  {key:18} {value:,.6g}" if isinstance(value, float) else f"  {key:18} {value:,}")
    return 0


if __name__ == "__main__":
    run_command(main)
