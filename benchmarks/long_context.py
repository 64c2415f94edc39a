"""Local attention over a long prompt: a Gemma-3-shaped model (window 512) reads 16,384 tokens in the C runtime.

    python -m benchmarks.long_context

Random weights in the shape of Gemma 3 270M with SmolLM2's vocabulary, exported to Q8_0. The cache must have the planned
size, with local layers as large at any context; logits after positions on both sides of the window, of a batch and of
the ring must be those of JAX on the same weights; and decoding must stay fast: the speed at the end over the speed at
1,024 tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from attar.engine.checkpoint import load_model, save_model
from attar.engine.config import ModelConfig
from attar.engine.kv_cache import init_cache
from attar.engine.presets import PRESETS
from attar.engine.transformer import Params, cached_hidden_states, init_params, project_logits
from attar.export.gguf_writer import export_gguf
from attar.runtime.native import NativeModel, NativeSession
from attar.runtime.session import NativeOptions
from benchmarks.command import count, run_command
from benchmarks.runtime_models import smollm2

PIECE = 512  # tokens that JAX reads at once
NEAR = 1024  # the context at which the first speed is taken


@dataclass(frozen=True)
class LongContext:
    """Figures of one run.

    Attributes:
      cache_bytes_short: Planned at 2,048 tokens; `cache_bytes` at the whole context.
      local_bytes: Of the cache at the whole context, what local layers take.
      rms_error_share: Root mean square difference of the logits over their standard deviation, worst position.
      speed_ratio: Decode tokens/s at the end over those at 1,024 tokens.
    """

    tokens: int
    cache_type: str
    activation_bits: int
    cache_bytes_short: int
    cache_bytes: int
    local_bytes: int
    positions_checked: int
    rms_error_share: float
    same_choice: int
    prefill_tokens_per_second: float
    decode_near: float
    decode_far: float
    speed_ratio: float


def checked_positions(tokens: int, window: int) -> list[int]:
    """Positions around the window, the batches, powers of two and the end."""
    edges = {0, 1, 255, 256, window - 1, window, window + 255, window + 256, 2 * window, tokens // 2, tokens - 1}
    powers = {2**i for i in range(10, 20)}
    return sorted(p for p in edges | powers | {p - 1 for p in powers} if 0 <= p < tokens)


def reference_logits(
    params: Params, config: ModelConfig, ids: NDArray[np.int32], rows: list[int]
) -> NDArray[np.float32]:
    """JAX's logits [len(rows), V] after the given positions; the prompt is read piece by piece into a cache."""
    read = jax.jit(cached_hidden_states, static_argnums=1, donate_argnums=4)
    cache = init_cache(config, 1, len(ids))
    hidden = []
    for start in range(0, len(ids), PIECE):
        positions = jnp.arange(start, start + PIECE, dtype=jnp.int32)[None]
        states, cache = read(params, config, jnp.asarray(ids[None, start : start + PIECE]), positions, cache)
        hidden += [np.asarray(states[0, p - start]) for p in rows if start <= p < start + PIECE]
    return np.asarray(project_logits(params, config, jnp.asarray(np.stack(hidden))))


def measured_logits(
    session: NativeSession, ids: NDArray[np.int32], rows: list[int]
) -> tuple[NDArray[np.float32], float]:
    """The runtime's logits after the same positions, and the seconds that reading took."""
    logits, at, started = [], 0, time.perf_counter()
    for row in rows:
        logits.append(session.prefill(ids[at : row + 1].tolist()))
        at = row + 1
    return np.stack(logits), time.perf_counter() - started


def decode_speed(session: NativeSession, ids: NDArray[np.int32], tokens: int = 48) -> float:
    """Tokens a second from the session's position on, which is restored; the best of three takes."""
    start, seconds = session.position, []
    for _ in range(3):
        began = time.perf_counter()
        for token in ids[:tokens]:
            session.decode(int(token))
        seconds.append(time.perf_counter() - began)
        session.rewind(start)
    return tokens / min(seconds)


def measure(path: Path, params: Params, config: ModelConfig, tokens: int, options: NativeOptions) -> LongContext:
    """Reads the prompt in both and compares."""
    ids = np.random.default_rng(0).integers(0, config.vocab_size, tokens).astype(np.int32)
    rows = checked_positions(tokens, config.sliding_window or 0)
    model = NativeModel(path)
    short, long = (model.plan(n, options=options).cache_bytes or 0 for n in (2048, tokens + 64))
    slope = (long - (model.plan(tokens // 2, options=options).cache_bytes or 0)) / (tokens + 64 - tokens // 2)
    with NativeSession(model, context_length=tokens + 64, options=options) as session:
        session.prefill(ids[:NEAR].tolist())
        near = decode_speed(session, ids)
        session.rewind(0)
        logits, seconds = measured_logits(session, ids, rows)
        far = decode_speed(session, ids)
    want = reference_logits(params, config, ids, rows)
    errors = np.sqrt(((logits - want) ** 2).mean(axis=1)) / want.std(axis=1)
    return LongContext(
        tokens=tokens,
        cache_type=options.cache_type,
        activation_bits=options.activation_bits or 8,
        cache_bytes_short=short,
        cache_bytes=long,
        local_bytes=round(long - slope * (tokens + 64)),
        positions_checked=len(rows),
        rms_error_share=float(errors.max()),
        same_choice=int((logits.argmax(1) == want.argmax(1)).sum()),
        prefill_tokens_per_second=tokens / seconds,
        decode_near=near,
        decode_far=far,
        speed_ratio=far / near,
    )


def main() -> int:
    """Prints the figures, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=count, default=16_384, help="a multiple of 512 (default 16,384)")
    parser.add_argument("--cache", choices=["f16", "int8"], default="f16")
    parser.add_argument("--activation-bits", type=int, choices=[8, 16], default=16)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    if chosen.tokens % PIECE or chosen.tokens < 2 * NEAR:
        parser.error(f"--tokens must be a multiple of {PIECE} and at least {2 * NEAR}, got {chosen.tokens}")
    config = PRESETS["gemma3-270m"].replace(
        vocab_size=49152, max_position_embeddings=32_768, bos_token_id=1, eos_token_ids=(2,)
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, path = Path(folder) / "model", Path(folder) / "model.gguf"
        save_model(checkpoint, config, init_params(config, jax.random.key(0)), smollm2(), {"weights": "random"})
        export_gguf(checkpoint, path, "Q8_0")
        stored = load_model(path)  # what the file's weights decode to
        options = NativeOptions(activation_bits=chosen.activation_bits, cache_type=chosen.cache)
        result = measure(path, stored.params, stored.config, chosen.tokens, options)
    if chosen.json:
        print(json.dumps(asdict(result)))
        return 0
    for key, value in asdict(result).items():
        print(f"{key:28} {value:,.5g}" if isinstance(value, float) else f"{key:28} {value}")
    return 0


if __name__ == "__main__":
    run_command(main)
