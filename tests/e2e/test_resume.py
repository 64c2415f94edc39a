"""A training run killed with SIGKILL at random moments and resumed ends with bit-identical weights."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from attar.distill.run_folder import read_metrics
from attar.engine.checkpoint import save_model
from attar.engine.presets import PRESETS
from attar.engine.transformer import init_params

STEPS = 30
TRAIN = """
import json
import sys
from pathlib import Path

from attar.distill.config import TrainConfig
from attar.distill.trainer import train

train(TrainConfig.from_json(json.loads(sys.argv[1])), Path(sys.argv[2]))
"""
COMMON = {
    "student_layers": [0],
    "steps": STEPS,
    "batch_size": 4,
    "max_new_tokens": 8,
    "prompt_buckets": 1,
    "checkpoint_every": 3,
    "eval_every": 10,
    "eval_examples": 4,
    "learning_rate": 1e-2,
    "warmup_steps": 5,
}
KINDS: dict[str, dict[str, Any]] = {
    "on-policy": {"data": "train.jsonl"},
    "packed-mixture": {
        "data": ["train.jsonl", "*.txt"],
        "data_weights": [0.4, 0.6],
        "documents": "blank-line",
        "method": "pretrain",
        "pack": True,
        "pack_tokens": 40,
        "max_tokens": 24,
        "log": ["tensorboard"],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer teacher over bytes, ten lines of data and a little text: epochs of two batches."""
    folder = tmp_path_factory.mktemp("resume")
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={"<eos>": 0, **{c: i + 1 for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}}, merges=[]
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    source = folder / "tokenizer"
    source.mkdir()
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "add_bos_token": False}))
    shape = PRESETS["tiny-llama"].replace(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        layer_types=("full_attention",) * 2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=None,
        eos_token_ids=(0,),
        pad_token_id=0,
    )
    params = init_params(shape, jax.random.key(1))
    save_model(folder / "teacher", shape, {**params, "embed_tokens": params["embed_tokens"] * 5.0}, source, {})
    rows = [{"prompt": f"say {word}:", "completion": word[::-1]} for word in "a bc def gh i jkl mn op qrs t".split()]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "story.txt").write_text("\n\n".join(f"{word} came home. " * 3 for word in "one two three four".split()))
    return folder


def start(folder: Path, kind: str, run: str) -> subprocess.Popen[bytes]:
    settings = COMMON | KINDS[kind]
    names = [settings["data"]] if isinstance(settings["data"], str) else settings["data"]
    settings["data"] = [str(folder / name) for name in names]
    settings |= {"eval_data": str(folder / "train.jsonl"), "teacher": str(folder / "teacher")}
    # Compiling is most of the time; the cache hands every process the same machine code.
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "xla-cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, json.dumps(settings), str(folder / run)],
        env=environment,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def wait_for_step(process: subprocess.Popen[bytes], metrics: Path, step: int) -> None:
    """Returns once the run has logged the step."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it was killed"
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            return
        time.sleep(0.001)
    raise AssertionError(f"step {step} was not reached")


def deterministic(line: dict[str, Any]) -> dict[str, Any]:
    """A metrics line without what a clock measured."""
    return {key: value for key, value in line.items() if key != "seconds"}


@pytest.mark.parametrize("kind", ["on-policy", pytest.param("packed-mixture", marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_uninterrupted(folder: Path, kind: str) -> None:
    finish(start(folder, kind, f"{kind}-whole"))
    rng = random.Random(time.time_ns())
    moments = sorted(rng.sample(range(2, STEPS - 2), 3))
    pauses = [rng.random() * 0.02 for _ in moments]
    note = f"killed {list(zip(moments, pauses, strict=True))} (step, seconds after it)"
    metrics = folder / f"{kind}-killed" / "metrics.jsonl"
    for moment, pause in zip(moments, pauses, strict=True):
        process = start(folder, kind, f"{kind}-killed")
        wait_for_step(process, metrics, moment)
        time.sleep(pause)  # lands anywhere: in a step, an evaluation, or while a checkpoint is written
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, note
    finish(start(folder, kind, f"{kind}-killed"))

    whole, killed = (folder / f"{kind}-{run}" for run in ("whole", "killed"))
    weights = Path("student", "model.safetensors")
    assert (whole / weights).read_bytes() == (killed / weights).read_bytes(), note
    expected, actual = (
        [deterministic(line) for line in read_metrics(run / "metrics.jsonl")] for run in (whole, killed)
    )
    assert actual == expected, note
    assert not list((killed / "checkpoints").glob(".partial*"))
