"""The whole road on real data, as `make demo` runs it: teacher, student, device files, one table.

Every step is an `attar` command, printed before it runs, so that any of them can be typed again alone. A step whose
result is there is not repeated: a demo that was interrupted goes on where it stopped.

    SmolLM2-135M-Instruct, fine-tuned to write a package's one-line summary      the teacher
    20 of its 30 layers, first by SFT, then by SFT or by on-policy GKD           the students
    the GKD student as GGUF Q8_0, GGUF Q4_0, ONNX int8 and TFLite int8           what a phone runs
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(highlight=False)
console.width = max(console.width, 110)  # the table is not worth reading squeezed; a narrower terminal wraps it

TOKENS = ["--max-new-tokens", "16", "--prompt-format", "plain"]
TRAIN = [*TOKENS, "--batch-size", "8", "--prompt-buckets", "2", "--checkpoint-every", "1000"]
EXPORTS = {
    "GGUF Q8_0": ("gguf", "Q8_0", "student-Q8_0.gguf"),
    "GGUF Q4_0": ("gguf", "Q4_0", "student-Q4_0.gguf"),
    "ONNX int8": ("onnx", "int8", "student-onnx"),
    "TFLite int8": ("tflite", "int8", "tflite/student.tflite"),
}


@dataclass(frozen=True)
class Plan:
    """How much is trained and measured. Equal steps for both students."""

    max_words: int = 32
    teacher_steps: int = 12
    layers: int = 20
    start_steps: int = 10
    steps: int = 20
    examples: int = 200
    scored_examples: int = 24
    seed: int = 0


class Demo:
    """Runs commands in an output folder and remembers what each cost."""

    def __init__(self, out: Path, plan: Plan) -> None:
        self.out, self.plan = out, plan
        self.seconds: dict[str, float] = {}

    def attar(self, *arguments: object, result: Path, stdout: Path | None = None, quiet: bool = False) -> None:
        """Runs one command unless its result is there; its standard output may go to a file.

        Args:
          quiet: Shows what it writes to standard error only where it fails.
        """
        words = ["attar", *map(str, arguments)]
        line = shlex.join(words) + (f" > {stdout}" if stdout else "")
        if result.exists():
            console.print(f"[dim]$ {line}   (done before)[/]", soft_wrap=True)
            return
        console.print(f"[bold]$ {line}[/]", soft_wrap=True)
        started = time.perf_counter()
        part = stdout.with_name(stdout.name + ".part") if stdout else None
        with part.open("w") if part else open("/dev/null", "w") as sink:
            command = [sys.executable, "-m", "attar.cli", *words[1:]]
            done = subprocess.run(
                command, stdout=sink if part else None, stderr=subprocess.PIPE if quiet else None, check=False
            )
        if done.returncode:
            sys.stderr.buffer.write(done.stderr or b"")
            sys.exit(done.returncode)
        if part and stdout:
            part.replace(stdout)
        self.seconds[line] = time.perf_counter() - started

    def prepare(self) -> None:
        """Brings the pre-trained model and builds the data."""
        self.out.mkdir(parents=True, exist_ok=True)
        data = self.out / "data"
        self.attar("pull", "smollm2", result=self.out / "pulled", stdout=self.out / "pulled")
        self.attar(
            "data", "package_summaries", "--max-words", self.plan.max_words, "--out", data, result=data / "recipe.json"
        )

    def train(self) -> None:
        """Fine-tunes the teacher, then trains the students: a common start, and equal steps of SFT and of GKD."""
        plan, data = self.plan, ["--data", self.out / "data" / "train.jsonl"]
        teacher = self.out / "teacher"
        self._distill(
            teacher, ["--method", "sft", "--student", "smollm2", *data], plan.teacher_steps, learning_rate=2e-4
        )
        cut = ["--teacher", teacher, "--student-layers", plan.layers, *data]
        self._distill(self.out / "start", ["--method", "sft", *cut], plan.start_steps, learning_rate=3e-4)
        onward = ["--teacher", teacher, "--student", self.out / "start", *data]
        self._distill(self.out / "sft", ["--method", "sft", *onward], plan.steps, learning_rate=4e-4)
        watched = ["--eval-data", self.out / "data" / "validation.jsonl", "--eval-examples", 4, "--eval-every", 60]
        gkd = [
            "--method",
            "gkd",
            "--beta",
            0,
            *onward,
            *watched,
        ]  # forward KL, on data and on the student's own samples
        self._distill(self.out / "gkd", gkd, plan.steps, learning_rate=4e-4)

    def _distill(self, run: Path, options: list[Any], steps: int, learning_rate: float) -> None:
        training = ["--steps", steps, "--learning-rate", learning_rate, "--warmup-steps", max(1, steps // 10)]
        training += ["--seed", self.plan.seed, *TRAIN]
        self.attar("distill", *options, *training, "--out", run, result=run / "student" / "config.json")

    def export(self) -> None:
        """Writes and verifies the device files of the GKD student."""
        for target, weights, name in EXPORTS.values():
            path = self.out / name
            options = ["--to", target, "--weights", weights, "--out", path]
            options += [] if target == "gguf" else ["--context", 1024]
            verified = path.with_name(path.name + ".verify.json")
            self.attar("export", self.out / "gkd", *options, result=verified)

    def measure(self) -> dict[str, dict[str, Any]]:
        """Quality and speed of every row, as JSON beside the models."""
        models = {"teacher": "teacher", "student, SFT": "sft", "student, GKD": "gkd"}
        models |= {f"  {label}": name for label, (_, _, name) in EXPORTS.items()}
        # A small model gains little from a second thread: files are scored two at a time, with one each.
        files = [name for _, _, name in EXPORTS.values()]
        with ThreadPoolExecutor(2) as pool:
            scored = dict(zip(files, pool.map(lambda name: self.score(name, threads=1), files), strict=True))
        rows = {}
        for label, name in models.items():
            speed = self.out / f"{Path(name).name}.bench.json"
            options = ["--prompt", 256, "--depths", "0,512", "-n", 32, "--repeats", 1, "--json"]
            scores = scored.get(name) or self.score(name)
            self.attar("bench", self.out / name, *options, result=speed, stdout=speed)
            rows[label] = {"scores": scores, **json.loads(speed.read_text())["results"][0]}
        return rows

    def score(self, name: str, threads: int | None = None) -> dict[str, dict[str, float]]:
        """Held-out scores of a run or an exported file, by name, each with mean and interval.

        Args:
          threads: Of an exported file's runtime; with a number, no progress bar is drawn, since others run beside.
        """
        quality = self.out / f"{Path(name).name}.eval.json"
        options = ["--data", self.out / "data", "--examples", self.plan.examples, *TOKENS, "--json"]
        options += ["--scored-examples", self.plan.scored_examples, "--batch-size", 40]
        options += [] if name == "teacher" else ["--teacher", self.out / "teacher"]
        options += [] if threads is None else ["--threads", threads]
        self.attar("eval", self.out / name, *options, result=quality, stdout=quality, quiet=threads is not None)
        scores: dict[str, dict[str, float]] = json.loads(quality.read_text())["scores"]
        return scores


def make_table(rows: dict[str, dict[str, Any]]) -> Table:
    """The one table: quality, size, memory and speed of each row."""
    columns = ["", "ROUGE-L", "KL to\nteacher", "file\nMB", "peak RSS\nMB", "first token\nms", "prefill\ntokens/s"]
    columns += ["decode\ntokens/s", "the same\nat 512"]
    table = Table(*columns, title="attar demo", title_justify="left", box=None, pad_edge=False, padding=(0, 1))
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for label, row in rows.items():
        scores, decode = row["scores"], row["decode_tokens_per_second"]
        table.add_row(
            label,
            f"{100 * scores['rougeL']['mean']:.1f}",
            f"{scores['kl_student_teacher_samples']['mean']:.3f}" if label != "teacher" else "0",
            f"{row['file_bytes'] / 1e6:.0f}",
            f"{row['peak_rss_bytes'] / 1e6:.0f}",
            f"{1e3 * row['first_token_seconds']:.0f}",
            f"{row['prefill_tokens_per_second']:.0f}",
            f"{decode['0']:.0f}",
            f"{decode['512']:.0f}",
        )
    return table


def main() -> None:
    """Runs the demo and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="output folder (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training runs (default: 0)")
    chosen = parser.parse_args()
    started = time.perf_counter()
    demo = Demo(chosen.out, Plan(seed=chosen.seed))
    demo.prepare()
    demo.train()
    demo.export()
    rows = demo.measure()
    (chosen.out / "table.json").write_text(json.dumps(rows, indent=2))
    console.print()
    console.print(make_table(rows))
    console.print(
        "\nROUGE-L: greedy answers against the real summaries of held-out packages. KL to teacher: nats per token on\n"
        "the student's own samples, KL(student ‖ teacher). Checkpoints (the first three rows) answer in JAX and are\n"
        "timed as F16 GGUF in attar's runtime; the others answer and are timed in their own runtimes. Peak RSS is the\n"
        "whole process, Python included."
    )
    minutes = (time.perf_counter() - started) / 60
    console.print(f"\n{minutes:.1f} minutes. Talk to the student: attar chat --raw {chosen.out}/student-Q8_0.gguf")


if __name__ == "__main__":
    main()
