"""One of TRL's trainers on the benchmark's models and rows; prints a line of JSON with the seconds of every step.

    python trl_driver.py FOLDER {gkd,distillation} {on_policy,supervised} BATCH STEPS NEW_TOKENS THREADS PRECISION ORDER

PRECISION is float32 or bf16. ORDER is a JSON file: which rows of FOLDER/rows.jsonl to read, in order.

Run by an interpreter that has TRL and nothing of attar. Both trainers stand at their best setting: no gradient
checkpointing, a cache while sampling, no checkpoints written, no reports.
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


def settings_of(work: str, batch: int, steps: int, bf16: bool) -> dict[str, Any]:
    return {
        "output_dir": work,
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": bf16,
        "beta": 0.5,
        "temperature": 1.0,
        "disable_tqdm": True,
        "seed": 0,
    }


def make_trainer(
    kind: str, on_policy: bool, folder: Path, order: list[int], settings: dict[str, Any], new_tokens: int
) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    student, teacher = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("student", "teacher"))
    lines = (folder / "rows.jsonl").read_text().splitlines()
    rows = [json.loads(lines[index]) for index in order]
    if kind == "distillation":
        from trl import DistillationConfig, DistillationTrainer

        prompts = Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
        config = DistillationConfig(max_completion_length=new_tokens, shuffle_dataset=False, **settings)
        return DistillationTrainer(student, teacher, config, train_dataset=prompts, processing_class=tokenizer)
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    def talk(row: dict[str, str]) -> list[dict[str, str]]:
        return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]

    messages = Dataset.from_list([{"messages": talk(row)} for row in rows])
    config = GKDConfig(lmbda=1.0 if on_policy else 0.0, max_new_tokens=new_tokens, max_length=1024, **settings)
    return GKDTrainer(student, teacher, config, train_dataset=messages, processing_class=tokenizer)


def main() -> None:
    folder, kind, mode, *numbers, precision, order_file = sys.argv[1:]
    batch, steps, new_tokens, threads = map(int, numbers)
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(threads)
    ends: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as work:
        settings = settings_of(work, batch, steps, precision == "bf16")
        order = json.loads(Path(order_file).read_text())
        trainer = make_trainer(kind, mode == "on_policy", Path(folder), order, settings, new_tokens)
        trainer._get_train_sampler = lambda dataset=None: torch.utils.data.SequentialSampler(trainer.train_dataset)
        trainer.add_callback(Clock())
        began = time.perf_counter()
        trainer.train()
    seconds = [end - start for start, end in zip([began, *ends], ends, strict=False)]
    print(json.dumps({"step_seconds": seconds, "losses": losses, "peak_rss_bytes": peak_rss_bytes()}))


if __name__ == "__main__":
    main()
