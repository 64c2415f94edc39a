"""Peak memory of one GKD step as the vocabulary grows.

    python -m benchmarks.vocabulary_memory [--vocabularies 32768 262144] [--json]

One step of on-policy GKD's training (Llama shape: student 4 layers of 256, teacher 8 of 512, batch 8, 64 + 64 tokens,
AdamW, float32, random weights) in a process of its own for each vocabulary, from compiling it on; making the weights is
not counted. What has the size of the tables themselves is taken off: the student's table, its gradient, AdamW's two
moments, and the teacher's table. What is left must not grow.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from attar.cli._console import make_table, out
from benchmarks.command import count, run_command
from benchmarks.peers import run_json
from benchmarks.runtime_models import say
from benchmarks.trainer_driver import forget_peak_rss, peak_rss_bytes

WIDTHS = {"student": (4, 256), "teacher": (8, 512)}  # layers, hidden size
BATCH, PROMPT, NEW = 8, 64, 64
BAR = 1.1
STEPS = 3


@dataclass(frozen=True)
class Measured:
    """One process, in bytes.

    Attributes:
      peak: Resident, at most, above what the interpreter with JAX held before.
      tables: The two tables, and the gradient and moments of the student's.
      dense_logits: One array of logits [B, N, V], for comparison.
    """

    vocabulary: int
    peak: int
    tables: int
    dense_logits: int

    @property
    def rest(self) -> int:
        """Everything that is not a table."""
        return self.peak - self.tables


def measure_here(vocabulary: int) -> Measured:
    """Takes a few steps in this process."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from attar.distill.batches import Batch
    from attar.distill.methods.gkd import Gkd
    from attar.distill.step import OptimizerConfig, init_state, make_optimizer, make_train_step
    from attar.engine.compiler_memory import give_back_after_compiling
    from attar.engine.presets import PRESETS
    from attar.engine.transformer import init_params

    give_back_after_compiling()
    jnp.zeros(1).block_until_ready()
    start = peak_rss_bytes()
    shapes = [
        PRESETS["tiny-llama"].replace(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            layer_types=("full_attention",) * layers,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=width // 8,
            max_position_embeddings=1024,
        )
        for layers, width in WIDTHS.values()
    ]
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-4, steps=STEPS, schedule="constant"))
    student, teacher = (jax.jit(init_params, static_argnums=0)(s, jax.random.key(i)) for i, s in enumerate(shapes))
    state = init_state(student, optimizer)
    del student
    jax.block_until_ready((state, teacher))
    forget_peak_rss()
    step = make_train_step(*shapes, Gkd(on_policy_fraction=1.0), optimizer)
    rng = np.random.default_rng(0)
    prompts, completions = (rng.integers(3, vocabulary, (BATCH, n)).astype(np.int32) for n in (PROMPT, NEW))
    batch = Batch(prompts, np.full(BATCH, PROMPT, np.int32), completions, np.full(BATCH, NEW, np.int32))
    for _ in range(STEPS):
        state, metrics = step(state, teacher, batch)
        float(metrics.loss)
    tables = 4 * vocabulary * (4 * shapes[0].hidden_size + shapes[1].hidden_size)
    return Measured(vocabulary, peak_rss_bytes() - start, tables, 4 * BATCH * NEW * vocabulary)


def print_table(found: list[Measured], ratio: float) -> None:
    """Megabytes by vocabulary, and the verdict."""
    rows = [
        [
            f"{one.vocabulary:,}",
            *(f"{value / 1e6:,.0f}" for value in (one.peak, one.tables, one.rest, one.dense_logits)),
        ]
        for one in found
    ]
    columns = ["vocabulary", "peak", "tables", "the rest", "one array of all logits"]
    out.print(make_table("One step of GKD, MB", columns, rows))
    out.print(f"the rest, last ÷ first: {ratio:.2f} ({'pass' if ratio <= BAR else 'FAIL'}: at most {BAR})")


def main() -> int:
    """Prints a table, or one JSON object; exit status 1 where the memory grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=count, nargs="+", default=[32768, 65536, 131072, 262144])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", type=count, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.here:
        print(json.dumps(asdict(measure_here(chosen.here))))
        return 0
    found = []
    for vocabulary in chosen.vocabularies:
        say(f"vocabulary of {vocabulary:,}")
        command: list[str | Path] = [sys.executable, "-m", "benchmarks.vocabulary_memory", "--here", str(vocabulary)]
        found.append(Measured(**run_json(command, f"vocabulary of {vocabulary}")))
    ratio = found[-1].rest / found[0].rest
    if chosen.json:
        print(json.dumps({"ratios": {"rest": 1 / ratio}, "runs": [asdict(one) for one in found]}))
    else:
        print_table(found, ratio)
    return 0 if ratio <= BAR else 1


if __name__ == "__main__":
    run_command(main)
