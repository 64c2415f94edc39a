"""The command group. Commands are imported when they are called, so that `attar --help` starts in a blink."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import click

from attar import __version__
from attar.cli._errors import one_line_errors


class Entry(NamedTuple):
    """Where a command lives, and its line in the overview."""

    module: str
    summary: str


COMMANDS = {
    "pull": Entry("attar.cli.pull", "Bring a model by name into the cache."),
    "data": Entry("attar.cli.data", "Build a training set from a recipe."),
    "shape": Entry("attar.cli.shape", "Propose a student's shape for a budget of bytes or milliseconds."),
    "label": Entry("attar.cli.label", "Store a teacher's targets for a data set, once."),
    "generate": Entry("attar.cli.generate", "Have a teacher answer the prompts of a data set."),
    "distill": Entry("attar.cli.distill", "Train a student from a teacher."),
    "merge": Entry("attar.cli.merge", "Fold a low-rank adapter into its model."),
    "plan": Entry("attar.cli.plan", "Estimate memory, operations and days before training."),
    "quantize": Entry("attar.cli.quantize", "Round a checkpoint's weights and report what it costs."),
    "export": Entry("attar.cli.export", "Write a device file (GGUF, ONNX, TFLite) and verify it."),
    "chat": Entry("attar.cli.chat", "Talk to a model on its device runtime."),
    "bench": Entry("attar.cli.bench", "Measure load, first token, prefill, decode, memory and size."),
    "eval": Entry("attar.cli.evaluate", "Score a model on held-out examples."),
    "compare": Entry("attar.cli.compare", "Tell runs apart on the held-out examples they share."),
    "inspect": Entry("attar.cli.inspect", "Show what is inside a model folder or file."),
}


class LazyGroup(click.Group):
    """A group whose commands are modules with a click command named `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        try:
            found = importlib.import_module(COMMANDS[cmd_name].module).command
        except ModuleNotFoundError as error:
            raise click.ClickException(_missing_extra(cmd_name, error)) from None
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        with one_line_errors():
            return super().invoke(ctx)


_EXTRAS = {
    **dict.fromkeys(("label", "generate", "distill", "plan", "eval", "compare", "merge", "shape"), "train"),
    **dict.fromkeys(("quantize", "export"), "export"),
}


def _missing_extra(command: str, error: ModuleNotFoundError) -> str:
    if (error.name or "").startswith("attar"):
        raise error
    extra = _EXTRAS.get(command)
    remedy = f"pip install 'attar[{extra}]'" if extra else f"pip install {error.name}"
    return f"attar {command} needs {error.name}, which is not installed; run: {remedy}"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="attar")
def main() -> None:
    """Turn a large language model into a small one that runs on a phone.

    \b
    A model argument is a name (smollm2, gemma3-270m), a Hugging Face id, a checkpoint folder,
    a run folder, or a .gguf, .onnx or .tflite file.

    \b
    The road:  attar pull smollm2
               attar data package_summaries --out data
               attar distill --teacher smollm2 --data data --method gkd --out run
               attar export run --to gguf --weights Q8_0 --out student.gguf
               attar chat student.gguf
               attar bench student.gguf
    """
