"""`attar export`: write a device file and verify it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from attar.cli._compilation_cache import use_compilation_cache
from attar.cli._console import err, out, print_json, spell_bytes
from attar.cli._models import model_source
from attar.export.verify import VerifyReport, report_path, verify_export
from attar.runtime.session import NativeOptions, open_session

WEIGHTS = {
    "gguf": ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "F16", "BF16", "F32"),
    "onnx": ("int8", "int4", "fp32"),
    "tflite": ("int8", "fp32"),
}
_ENDINGS = {"gguf": ".gguf", "onnx": "-onnx", "tflite": ".tflite"}


@dataclass(frozen=True)
class Written:
    """What an exporter left."""

    path: Path
    size_bytes: int
    warnings: tuple[str, ...]


@click.command("export")
@click.argument("model")
@click.option("--to", "target", type=click.Choice(list(WEIGHTS)), required=True, help="Format.")
@click.option("--weights", help="Precision; see below. Default: 8 bits.")
@click.option("--out", "path", type=click.Path(path_type=Path), help="File (ONNX: folder) to write.")
@click.option("--context", "-c", type=click.IntRange(1), help="Positions an ONNX or TFLite file serves.")
@click.option("--threads", "-t", type=click.IntRange(1), help="Threads of the verification.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model: str,
    target: str,
    weights: str | None,
    path: Path | None,
    context: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write MODEL (a checkpoint, a run folder or a GGUF) as a device file, then verify it.

    \b
    gguf    Q8_0 (default), Q4_0, Q4_1, Q5_0, F16, BF16, F32    attar's C runtime, llama.cpp
    onnx    int8 (default), int4, fp32                          onnxruntime, onnxruntime-genai
    tflite  int8 (default), fp32                                LiteRT

    The file is reopened in its own runtime and compared with the JAX model on the weights it holds, over a prompt
    longer than the attention window. The figures stand beside it as NAME.verify.json. A file that fails is kept and
    marked, and the command exits with 1.
    """
    precision = weights or WEIGHTS[target][0]
    if precision not in WEIGHTS[target]:
        raise click.UsageError(f"--weights of {target} is one of {', '.join(WEIGHTS[target])}, got {precision!r}")
    if context is not None and target == "gguf":
        raise click.UsageError("--context is chosen when a GGUF is opened, not when it is written; leave it out")
    use_compilation_cache()
    source = model_source(model)
    path = path or Path(f"{_stem(source)}-{precision}{_ENDINGS[target]}")
    with err.status(f"writing {path}") as status:
        written = _write(source, path, target, precision, context)
        status.update("verifying in its runtime")
        report = verify_export(
            source,
            path,
            precision,
            open_session=partial(open_session, threads=threads, native=NativeOptions(activation_bits=16)),
        )
    for warning in written.warnings:
        err.print(f"note: {warning}", soft_wrap=True)
    if as_json:
        print_json({"path": str(path), "size_bytes": written.size_bytes, "verification": dataclasses.asdict(report)})
        return
    out.print(f"wrote {path}, {spell_bytes(written.size_bytes)}", soft_wrap=True)
    out.print(_describe(report), soft_wrap=True)
    out.print(f"[dim]figures: {report_path(path)}[/]", soft_wrap=True)


def _stem(source: Path) -> str:
    if source.suffix == ".gguf":
        return source.stem
    return source.parent.name if source.name == "student" else source.name


def _write(source: Path, path: Path, target: str, precision: str, context: int | None) -> Written:
    path.parent.mkdir(parents=True, exist_ok=True)
    # One branch per format, imported late: each needs that format's own library.
    if target == "gguf":
        from attar.export.gguf_writer import export_gguf

        gguf = export_gguf(source, path, precision)
        return Written(gguf.path, gguf.size_bytes, gguf.warnings)
    if target == "onnx":
        from attar.export.onnx_emitter import export_onnx

        onnx = export_onnx(source, path, precision, context_length=context)  # type: ignore[arg-type]  # checked above
        return Written(onnx.path, onnx.size_bytes, onnx.warnings)
    from attar.export.tflite_emitter import export_tflite

    tflite = export_tflite(source, path, precision, context_length=context)  # type: ignore[arg-type]  # checked above
    return Written(tflite.path, tflite.size_bytes, tflite.warnings)


def _describe(report: VerifyReport) -> str:
    return (
        f"[green]verified[/] on {report.num_tokens} tokens: same choice at {100 * report.greedy_agreement:.1f} % of "
        f"positions, mean KL {report.mean_kl:.2g}, largest logit error {report.max_abs_error:.2g}, perplexity of the "
        f"runtime × {report.perplexity_ratio:.4f}; of the rounding × {report.quantization_perplexity_ratio:.3f}"
    )
