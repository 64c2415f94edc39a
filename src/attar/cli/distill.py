"""`attar distill`: train a student from a teacher."""

from __future__ import annotations

import signal
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

import click
from rich.markup import escape

from attar.cli._compilation_cache import use_compilation_cache
from attar.cli._console import out, progress_bar
from attar.cli._mesh import device_mesh, join_processes
from attar.cli._models import model_source
from attar.cli._proposals import decide_prune_target
from attar.cli._student_options import NEEDED, adaptation_options, budget_options, parse_targets, pruning_options
from attar.cli._tables import evaluation_table
from attar.distill.config import TrainConfig
from attar.distill.divergences import DivergenceName
from attar.distill.evaluate import Evaluation
from attar.distill.methods.method import MethodName
from attar.distill.progress import SinkName, StepReport
from attar.distill.records import Documents
from attar.distill.step import ComputeDtype
from attar.distill.trainer import train
from attar.engine.processes import is_first

_POSITIVE = click.IntRange(1)
_SHARE = click.FloatRange(0, 1)
_ABOVE_0 = click.FloatRange(0, min_open=True)
# What each method reads beyond what all read; an option that would do nothing is refused.
_GKD_ONLY = (
    "on_policy_fraction",
    "divergence",
    "beta",
    "skew",
    "divergence_temperature",
    "teacher_temperature",
    "reward",
    "alpha",
    "samples_per_prompt",
    "sampling_temperature",
)
_DIVERGENCE_ONLY = {"beta": ("jsd",), "skew": ("skew_kl", "skew_reverse_kl")}


@click.command("distill")
@click.option("--data", multiple=True, help="File to train on, glob pattern, or recipe's folder; may be repeated.")
@click.option(
    "--mix",
    multiple=True,
    type=(str, _ABOVE_0),
    metavar="DATA WEIGHT",
    help="In place of --data, repeated: files to train on and their share, which holds all along the run.",
)
@click.option("--out", "run_dir", required=True, type=click.Path(path_type=Path, file_okay=False), help="Run folder.")
@click.option("--teacher", help="Model to learn from: a name, a checkpoint folder or a GGUF.")
@click.option("--targets", type=click.Path(path_type=Path), help="Folder of attar label, read in the teacher's place.")
@click.option("--student", help="Go on training this model (a checkpoint or run folder).")
@click.option("--student-layers", help="Start from layers of the teacher: '0,4,29', or '10' outer ones.")
@click.option("--student-shape", help="Start from random weights in a preset's shape, or a config.json's.")
@pruning_options
@budget_options
@adaptation_options
@click.option("--method", type=click.Choice(get_args(MethodName)), default="gkd", show_default=True, help="See below.")
@click.option("--lambda", "on_policy_fraction", type=_SHARE, default=0.5, show_default=True, help="On-policy share.")
@click.option("--divergence", type=click.Choice(get_args(DivergenceName)), default="jsd", show_default=True)
@click.option("--beta", type=_SHARE, default=0.5, show_default=True, help="Of jsd: 0 forward KL, 1 reverse KL.")
@click.option("--skew", type=click.FloatRange(0, 1, max_open=True), default=0.1, show_default=True, help="Of skew_*.")
@click.option("--divergence-temperature", type=_ABOVE_0, default=1.0, show_default=True, help="Of both sides' logits.")
@click.option("--teacher-temperature", type=_ABOVE_0, help="Of the teacher's logits, where it is another.")
@click.option("--reward", help="Reward samples too: exact_answer, rougeL, or your module:function.")
@click.option("--alpha", type=_SHARE, default=0.5, show_default=True, help="The divergence's share; the rest: reward.")
@click.option("--samples-per-prompt", type=_POSITIVE, default=1, show_default=True, help="For the reward's baseline.")
@click.option("--sampling-temperature", type=_ABOVE_0, default=1.0, show_default=True)
@click.option("--normalization", type=click.Choice(["sequence", "token"]), default="sequence", show_default=True)
@click.option("--steps", type=_POSITIVE, default=1000, show_default=True)
@click.option("--batch-size", type=_POSITIVE, default=16, show_default=True)
@click.option("--accumulation-steps", type=_POSITIVE, default=1, show_default=True, help="Parts of a batch.")
@click.option("--learning-rate", type=_ABOVE_0, default=3e-4, show_default=True)
@click.option("--warmup-steps", type=click.IntRange(0), default=0, show_default=True)
@click.option("--schedule", type=click.Choice(["constant", "linear", "cosine"]), default="linear", show_default=True)
@click.option("--weight-decay", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option("--max-new-tokens", type=_POSITIVE, default=128, show_default=True, help="Longest completion.")
@click.option("--max-prompt-tokens", type=_POSITIVE, help="Longest prompt allowed; default: what the context leaves.")
@click.option("--prompt-buckets", type=_POSITIVE, default=3, show_default=True, help="Lengths to pad to and compile.")
@click.option("--prompt-format", type=click.Choice(["auto", "plain", "chat"]), default="auto", show_default=True)
@click.option("--documents", type=click.Choice(get_args(Documents)), default="file", show_default=True, help="In .txt.")
@click.option("--max-tokens", type=click.IntRange(2), help="Windows plain text is cut into; default: 512 or context.")
@click.option("--pack", is_flag=True, help="Fill rows with several examples, which do not see each other (lambda 0).")
@click.option("--pack-tokens", type=_POSITIVE, help="Length of a packed row; default: what the longest example needs.")
@click.option("--eval-data", type=click.Path(path_type=Path), help="Default: validation.jsonl of the folder.")
@click.option("--eval-every", type=_POSITIVE, default=200, show_default=True)
@click.option("--eval-examples", type=_POSITIVE, default=64, show_default=True)
@click.option("--checkpoint-every", type=_POSITIVE, default=100, show_default=True)
@click.option("--remat", is_flag=True, help="Recompute activations: less memory, more time.")
@click.option("--compute-dtype", type=click.Choice(get_args(ComputeDtype)), default="float32", show_default=True)
@click.option("--log", multiple=True, type=click.Choice(get_args(SinkName)), help="Show metrics there too; repeatable.")
@click.option("--mesh", help="Devices: data=2,fsdp=4,tensor=1, or auto: all on fsdp. Default: one device.")
@click.option("--coordinator", help="Several processes, one run: where the first listens (HOST:PORT), or auto.")
@click.option("--num-processes", type=_POSITIVE, help="Processes in all, unless --coordinator auto finds out.")
@click.option("--process-id", type=click.IntRange(0), help="Which of them this is, from 0.")
@click.option("--seed", type=int, default=0, show_default=True)
def command(
    data: tuple[str, ...], mix: tuple[tuple[str, float], ...], run_dir: Path, eval_data: Path | None, **options: Any
) -> None:
    """Train a student in a run folder. The same command on the same folder continues a run that was stopped, and
    ends with the weights it would have had.

    \b
    sft       learns the data's completions.
    pretrain  learns, at every position of the data, the teacher's whole distribution instead of the one token that
              stands there: -Σ P log Q. Gemma Team, 2024, arXiv:2408.00118, section 3.2.
    gkd       brings the student's distributions to the teacher's, on completions that the student samples itself
              (a share --lambda of the batches) and on the data's. Agarwal et al., 2024, arXiv:2306.13649.
    uld       gkd from a teacher of another vocabulary: tokens that both have are compared one by one, all others by
              their sorted probabilities, where both have read the same text. Boizard et al., 2024, arXiv:2402.12030.

    With --reward, gkd maximises (1 - alpha) reward - alpha divergence on the student's samples (section 3.2 there). A
    function takes lists of prompts, completions and references, and returns one float a completion.

    With --targets, pretrain and supervised gkd (--lambda 0) read what attar label stored, and the teacher is never
    loaded, or for evaluation alone where --teacher names it. Tokens tell --divergence forward_kl alone, states all.

    \b
    DATA is .jsonl with one JSON object a line, {"prompt": ..., "completion": ...}, {"messages": [...]} or
    {"text": ...}; .parquet with such columns; or .txt, a document a file or, with --documents blank-line, a paragraph.
    Plain text is learnt token by token in windows, each of which begins with the last token of the one before.

    \b
    The run folder gets config.json, metrics.jsonl, checkpoints/, student/ (a Hugging Face folder) and report.html.

    \b
    On a mesh, data and fsdp divide the rows of a batch, fsdp divides the weights and the optimizer's state, tensor
    divides heads, feed-forward and vocabulary. A run may go on under another mesh. On several machines, start the
    same command on each with --coordinator; the run folder must be one that all of them see.
    """
    use_compilation_cache()
    if bool(data) == bool(mix):
        raise click.UsageError("name what to train on: --data DATA, or --mix DATA WEIGHT for each part of a mixture")
    names = data or tuple(name for name, _ in mix)
    options["data_weights"] = tuple(weight for _, weight in mix) or None
    _refuse_idle_options(options, names)
    join_processes(options)
    options["mesh"] = device_mesh(options["mesh"])
    train_data, held_out = _data_files(names, eval_data)
    config = _make_config(train_data, held_out, options)
    if not is_first():
        train(config, run_dir)  # the first process speaks for all
        return
    with RunDisplay(config) as display:
        result = train(config, run_dir, display)
    if result.evaluation is not None:
        out.print(evaluation_table("final evaluation", result.evaluation))
    out.print(f"student: {result.student}\nreport:  {result.report}", soft_wrap=True)


def _refuse_idle_options(options: dict[str, Any], data: tuple[str, ...]) -> None:
    """Names an option that was given and that the chosen method or the data does not read."""
    context = click.get_current_context()
    names = {parameter.name: parameter.opts[0] for parameter in context.command.params}

    def refuse(name: str, why: str) -> None:
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"{names[name]} would do nothing: {why}")

    for name, needed in NEEDED.items():
        if all(options[other] is None for other in needed):
            refuse(name, f"it is read beside {' or '.join(names[other] for other in needed)} only")
    if options["targets"] is not None and options["method"] == "sft":
        refuse("targets", "--method sft does not read it")
    for name in ("reward", "alpha", "samples_per_prompt") if options["method"] == "uld" else ():
        refuse(name, "--method uld does not read it")
    for name in _GKD_ONLY if options["method"] not in ("gkd", "uld") else ():
        refuse(name, f"--method {options['method']} does not read it")
    for name in ("alpha", "samples_per_prompt") if options["reward"] is None else ():
        refuse(name, "it is read with --reward only")
    for name, kinds in _DIVERGENCE_ONLY.items():
        if options["divergence"] not in kinds:
            refuse(name, f"--divergence {options['divergence']} does not read it; {' and '.join(kinds)} do")
    if not any(name.endswith(".txt") for name in data):
        refuse("documents", "no file is named *.txt")
    if options["pack"]:
        refuse("prompt_buckets", "packed rows have one length, --pack-tokens")
    else:
        refuse("pack_tokens", "rows are packed with --pack only")


def _data_files(data: tuple[str, ...], eval_data: Path | None) -> tuple[tuple[str, ...], Path | None]:
    """Files to train on and to evaluate on, a folder standing for those of a recipe."""
    files = tuple(str(Path(name) / "train.jsonl") if Path(name).is_dir() else name for name in data)
    held_out = [path for name in data if (path := Path(name) / "validation.jsonl").is_file()]
    return files, eval_data or (held_out[0] if len(held_out) == 1 else None)


def _make_config(data: tuple[str, ...], held_out: Path | None, options: dict[str, Any]) -> TrainConfig:
    for name in ("teacher", "student"):
        if options[name] is not None:
            options[name] = str(model_source(options[name]))
    options["targets"] = None if options["targets"] is None else str(options["targets"])
    layers = options.pop("student_layers")
    options["student_layers"] = None if layers is None else _layers(layers, options["teacher"])
    options["eval_data"] = None if held_out is None else str(held_out)
    options["student_prune"] = decide_prune_target(options)
    options["lora_targets"] = parse_targets(options["lora_targets"])
    try:
        return TrainConfig(data=data[0] if len(data) == 1 else data, **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _layers(text: str, teacher: str | None) -> tuple[int, ...]:
    """Layer indices as given, or for a count the teacher's outer layers."""
    try:
        count, *others = numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(
            f"--student-layers takes indices separated by commas, or one count, got {text!r}"
        ) from None
    if others:
        return numbers
    if teacher is None:
        raise click.UsageError("--student-layers takes layers of the teacher; name one with --teacher")
    from attar.engine.checkpoint import load_config
    from attar.engine.surgery import outer_layers

    try:
        return tuple(outer_layers(load_config(Path(teacher)).num_hidden_layers, count))
    except ValueError as error:
        raise click.UsageError(f"--student-layers: {error}") from None


class RunDisplay:
    """Draws a run: a bar with loss, speed and time left, and a line for each evaluation.

    Ctrl-C ends the run between two steps, since an exception in the midst of a computation can crash XLA's threads
    as Python ends; a second Ctrl-C does not wait.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._bar = progress_bar()
        self._task = self._bar.add_task(config.method, total=config.steps, note="")
        self._stopping = False
        self._handler: Any = signal.SIG_DFL

    def __enter__(self) -> Self:
        self._handler = signal.signal(signal.SIGINT, self._on_interrupt)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        signal.signal(signal.SIGINT, self._handler)

    def _on_interrupt(self, *_: object) -> None:
        if self._stopping:
            raise KeyboardInterrupt
        self._stopping = True
        self._bar.console.print("stopping after this step; the same command goes on from the last checkpoint")

    def _stop_if_asked(self) -> None:
        if self._stopping:
            raise KeyboardInterrupt

    def on_stage(self, stage: str) -> None:
        self._stop_if_asked()
        self._bar.update(self._task, note=f"[dim]{escape(stage)}[/]")

    def on_note(self, note: str) -> None:
        self._bar.console.print(note, soft_wrap=True)

    def on_step(self, report: StepReport) -> None:
        self._stop_if_asked()
        source = "student's samples" if report.on_policy else "data"
        speed = "" if report.tokens_per_second is None else f"{report.tokens_per_second:,.0f} tok/s · "
        note = f"{speed}loss {report.loss:.3f} [dim]on {source}[/]"
        self._bar.update(self._task, completed=report.step, note=note)
        if not self._bar.console.is_terminal and report.step % max(1, report.steps // 20) == 0:
            self._bar.console.print(f"step {report.step}/{report.steps}: {note}")  # a log has no bar

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:
        scores = {name: score.mean for name, score in evaluation.scores.items()}
        parts = [f"perplexity {evaluation.perplexity:.2f}"]
        if "kl_student_teacher_samples" in scores:
            parts.append(f"KL to teacher on own samples {scores['kl_student_teacher_samples']:.3f}")
        if "bits_per_byte" in scores:
            parts.append(f"{scores['bits_per_byte']:.3f} bits per byte")
        if "answer" in scores:
            parts.append(f"right answers {scores['answer']:.1%}, with calculator {scores['answer_calculator']:.1%}")
        elif "rougeL" in scores:
            parts.append(f"ROUGE-L {100 * scores['rougeL']:.1f}")
        self._bar.console.print(f"step {step}: {', '.join(parts)}")
