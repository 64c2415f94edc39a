"""GKD in attar against TRL's two trainers: seconds a step and peak memory, from the same weights and rows.

    python -m benchmarks.trl_gkd [--batches 8 32] [--quick] [--json]

A Llama-shaped student (4 layers of 256) learns from a teacher (8 layers of 512) over 8,192 tokens, prompts of 64 tokens
and 64 new ones, JSD(0.5), AdamW, float32. TRL's trainers (GKDTrainer, without gradient checkpointing, and
DistillationTrainer) and attar's whole trainer, with its data pipeline, padding masks, metrics and checkpoints, run in
processes of their own, in turn, for some rounds; a speed is the median of a process's steps but the first two, and a
ratio the median over rounds, above 1 being better for attar. The first step compiles: it is shown apart, and as it
weighs on each of 1,000 steps. First losses of supervised training, whose rows are the same, are compared.

Supervised training is measured twice: with the teacher in every step, as TRL has it, and `labelled`, from hidden states
of the teacher that `attar label --keep states` stored for all 512 rows before. The same losses come of both. Over
1,000 steps the rows are read many times, the teacher once; the ratio of `labelled` is that of seconds over 1,000 steps,
what labelling took and compilation included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from attar.cli._console import make_table, out
from benchmarks.command import count, run_command
from benchmarks.llama_cpp import cpu_name
from benchmarks.peers import benchmark_cache, environment_python, run_json
from benchmarks.runtime_models import say

TRL = ("torch==2.13.0", "transformers==5.24.0", "datasets==5.2.0", "accelerate==1.15.0", "trl==1.16.0")
VOCABULARY, PROMPT, NEW = 8192, 64, 64
ROWS = 512
FIRST_WORD = 3 + 256  # after the special tokens and the bytes
WARM_STEPS = 2
MODES = ("on_policy", "supervised")
PRECISIONS = ("float32", "bf16")
BARS = {"on_policy": 2.2, "supervised": 2.0, "labelled": 2.0, "rss": 1 / 0.7}
LOSS_TOLERANCE = 1e-4
LABELLED = "attar, labelled"


@dataclass(frozen=True)
class Run:
    """One process.

    Attributes:
      step_seconds: Median of the warm steps.
      first_seconds: Of the first step, compilation included.
      first_loss: As the trainer reports it.
      label_seconds: Of what was done once for all rows before.
    """

    step_seconds: float
    first_seconds: float
    first_loss: float
    peak_rss_bytes: int
    label_seconds: float = 0.0

    @property
    def amortised(self) -> float:
        """Seconds a step over 1,000 of them."""
        return (999 * self.step_seconds + self.first_seconds + self.label_seconds) / 1000


def make_inputs() -> Path:
    """Both models and the rows, in a folder of the cache."""
    folder = benchmark_cache() / "trl_gkd"
    if not (folder / "rows.jsonl").exists():
        say(f"making {folder}")
        folder.mkdir(exist_ok=True)
        _write_models(folder)
        rng = np.random.default_rng(0)
        rows = rng.integers(FIRST_WORD, VOCABULARY, (ROWS, PROMPT + NEW - 1))
        words = [[f"<{i}>" for i in row] for row in rows.tolist()]
        lines = [{"prompt": "".join(row[:PROMPT]), "completion": "".join(row[PROMPT:])} for row in words]
        part = folder / "rows.part"
        part.write_text("".join(json.dumps(line) + "\n" for line in lines))
        part.replace(folder / "rows.jsonl")
    return folder


def _write_models(folder: Path) -> None:
    import jax

    from attar.engine.checkpoint import save_model
    from attar.engine.presets import PRESETS
    from attar.engine.transformer import init_params

    tokenizer = folder / "tokenizer"
    _write_tokenizer(tokenizer)
    for seed, (name, layers, width) in enumerate((("student", 4, 256), ("teacher", 8, 512))):
        config = PRESETS["tiny-llama"].replace(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            layer_types=("full_attention",) * layers,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=width // 8,
            max_position_embeddings=1024,
            bos_token_id=1,
            eos_token_ids=(2,),
            pad_token_id=0,
        )
        save_model(folder / name, config, init_params(config, jax.random.key(seed)), tokenizer, {"weights": "random"})


def _write_tokenizer(folder: Path) -> None:
    """Bytes, and a token <n> for every other id, so that rows have exactly the lengths wanted."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    names = ["<pad>", "<s>", "</s>"]
    vocab = {name: i for i, name in enumerate([*names, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    model = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(names)
    model.add_tokens([tokenizers.AddedToken(f"<{i}>", normalized=False) for i in range(len(vocab), VOCABULARY)])
    folder.mkdir(exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "add_bos_token": False,
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def measure(command: Sequence[str | Path], what: str) -> Run:
    """Runs one trainer."""
    found = run_json(command, what)
    seconds, losses = found["step_seconds"], found["losses"]
    return Run(statistics.median(seconds[WARM_STEPS:]), seconds[0], losses[0], found["peak_rss_bytes"])


def measure_labelled(attar: Sequence[str | Path], numbers: Sequence[str], what: str) -> Run:
    """Labels the rows in one process, trains in another; the larger of both takes the memory."""
    labelled = run_json([*attar, "label", *numbers], what)
    run = measure([*attar, "labelled", *numbers], what)
    peak = max(run.peak_rss_bytes, labelled["peak_rss_bytes"])
    return replace(run, peak_rss_bytes=peak, label_seconds=labelled["seconds"])


def run_round(python: Path, folder: Path, mode: str, batch: int, chosen: argparse.Namespace) -> dict[str, Run]:
    """Every trainer once."""
    steps, threads = chosen.steps, os.cpu_count() or 1
    driver = Path(__file__).with_name("trl_driver.py")
    numbers = [str(batch), str(steps), str(NEW)]
    attar = [sys.executable, "-m", "benchmarks.trainer_driver", folder]
    order = folder / f"order_{batch}_{steps}.json"
    order.write_text(json.dumps(run_json([*attar, "order", *numbers], "the order of the rows")["rows"]))
    found = {"attar": measure([*attar, mode, *numbers], f"attar, {mode}, batch {batch}")}
    if mode == "supervised":
        found[LABELLED] = measure_labelled(attar, numbers, f"attar, labelled, batch {batch}")
    kinds = ("gkd", "distillation") if mode == "on_policy" else ("gkd",)
    for kind in kinds:
        for precision in chosen.precisions:
            name = f"TRL {kind}, {precision}"
            command = [python, driver, folder, kind, mode, *numbers, str(threads), precision, order]
            found[name] = measure(command, f"{name}, {mode}, batch {batch}")
    return found


def ratios_of(runs: dict[tuple[str, int], list[dict[str, Run]]]) -> dict[str, float]:
    """Medians over rounds: the peers' best ÷ attar, in float32, with bf16's apart."""
    found: dict[str, float] = {}
    for (mode, batch), rounds in runs.items():

        def ratio(figure: str, precision: str, ours: str = "attar", rounds: list[dict[str, Run]] = rounds) -> float:
            return statistics.median(
                min(getattr(run, figure) for name, run in one.items() if name.endswith(precision))
                / getattr(one[ours], figure)
                for one in rounds
            )

        found[f"{mode}_{batch}"] = ratio("step_seconds", "float32")
        if any(name.endswith("bf16") for name in rounds[0]):
            found[f"{mode}_{batch}_bf16"] = ratio("step_seconds", "bf16")
        found[f"{mode}_{batch}_amortised"] = ratio("amortised", "float32")
        found[f"rss_{mode}_{batch}"] = ratio("peak_rss_bytes", "float32")
        if mode == "supervised":
            found[f"labelled_{batch}"] = ratio("amortised", "float32", LABELLED)
            found[f"rss_labelled_{batch}"] = ratio("peak_rss_bytes", "float32", LABELLED)
    return found


def loss_gaps(runs: dict[tuple[str, int], list[dict[str, Run]]]) -> dict[str, float]:
    """How far the first losses of supervised training lie apart, by batch."""
    return {
        f"loss_{batch}": max(
            abs(one[ours].first_loss - one["TRL gkd, float32"].first_loss)
            for one in rounds
            for ours in ("attar", LABELLED)
        )
        for (mode, batch), rounds in runs.items()
        if mode == "supervised"
    }


def bar_of(name: str) -> float | None:
    """The least ratio asked for; None where the figure is shown for its own sake."""
    if name.endswith("_bf16"):
        return 1.0
    return None if name.endswith("_amortised") else BARS[name.rsplit("_", 1)[0] if name[:3] != "rss" else "rss"]


def passes(ratios: dict[str, float], gaps: dict[str, float]) -> bool:
    """Whether every bar is held."""
    bars = {name: bar_of(name) for name in ratios}
    return all(bar is None or ratios[name] >= bar for name, bar in bars.items()) and all(
        gap <= LOSS_TOLERANCE for gap in gaps.values()
    )


def print_tables(
    runs: dict[tuple[str, int], list[dict[str, Run]]], ratios: dict[str, float], gaps: dict[str, float]
) -> None:
    """Medians of every trainer, then the ratios."""
    rows = []
    for (mode, batch), rounds in runs.items():
        for name in rounds[0]:
            own = [one[name] for one in rounds]
            rows.append(
                [
                    f"{mode}, batch {batch}",
                    name,
                    f"{statistics.median(run.step_seconds for run in own):.2f}",
                    f"{statistics.median(run.first_seconds for run in own):.1f}",
                    f"{statistics.median(run.amortised for run in own):.2f}",
                    f"{statistics.median(run.peak_rss_bytes for run in own) / 2**20:.0f}",
                    f"{own[0].first_loss:.5f}",
                ]
            )
    out.print(
        make_table(
            f"GKD on {cpu_name()}", ["", "trainer", "s a step", "first step", "s over 1,000", "MiB", "first loss"], rows
        )
    )
    verdicts = []
    for name, ratio in ratios.items():
        bar = bar_of(name)
        verdicts.append(
            [name, f"{ratio:.2f}", "-" if bar is None else f"{bar:.2f} {'pass' if ratio >= bar else 'FAIL'}"]
        )
    for name, gap in gaps.items():
        verdicts.append([name, f"{gap:.1e}", f"{LOSS_TOLERANCE:.0e} {'pass' if gap <= LOSS_TOLERANCE else 'FAIL'}"])
    out.print(make_table("TRL's best ÷ attar", ["", "ratio", "bar"], verdicts))


def main() -> int:
    """Prints two tables, or one JSON object; exit status 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=count, nargs="+", default=[8, 32])
    parser.add_argument("--modes", choices=MODES, nargs="+", default=list(MODES))
    parser.add_argument(
        "--precisions",
        choices=PRECISIONS,
        nargs="+",
        default=list(PRECISIONS),
        help="of TRL's products; a CPU without instructions for bf16 takes minutes a step in it (default: both)",
    )
    parser.add_argument("--steps", type=count, default=8, help="of a process, the first two among them")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--quick", action="store_true", help="one round at batch 8")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--trl-python",
        type=Path,
        default=os.environ.get("ATTAR_TRL_PYTHON"),
        help="interpreter that has TRL (default: $ATTAR_TRL_PYTHON, else a virtualenv in the cache)",
    )
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.batches, chosen.rounds, chosen.steps = [8], 1, 5
    if chosen.steps <= WARM_STEPS:
        parser.error(f"--steps must be more than {WARM_STEPS}, got {chosen.steps}")
    if "float32" not in chosen.precisions:
        parser.error("--precisions must name float32, which is what the bars are about")
    python, folder = environment_python("trl", chosen.trl_python, TRL), make_inputs()
    runs: dict[tuple[str, int], list[dict[str, Run]]] = {}
    for number in range(chosen.rounds):
        for mode in chosen.modes:
            for batch in chosen.batches:
                say(f"round {number + 1} of {chosen.rounds}: {mode}, batch {batch}")
                runs.setdefault((mode, batch), []).append(run_round(python, folder, mode, batch, chosen))
    ratios, gaps = ratios_of(runs), loss_gaps(runs)
    if chosen.json:
        named = {
            f"{mode}_{batch}": [{name: asdict(run) for name, run in one.items()} for one in rounds]
            for (mode, batch), rounds in runs.items()
        }
        print(json.dumps({"ratios": ratios, "loss_gaps": gaps, "runs": named, "cpu": cpu_name(), "peers": TRL}))
    else:
        print_tables(runs, ratios, gaps)
    return 0 if passes(ratios, gaps) else 1


if __name__ == "__main__":
    run_command(main)
