"""`attar quantize`: round a checkpoint's weights and report what it costs."""

from __future__ import annotations

from pathlib import Path

import click

from attar.cli._console import err, make_table, out, print_json, spell_bytes
from attar.cli._models import model_source
from attar.quantize.policy import SCHEMES, make_scheme
from attar.quantize.ptq import QuantizeReport, measure_scheme, quantize_checkpoint

_TYPES = click.Choice(list(SCHEMES))


@click.command("quantize")
@click.argument("model")
@click.option("--weights", type=_TYPES, default="Q8_0", show_default=True, help="Type of the projections.")
@click.option("--embedding", type=_TYPES, help="Type of the token table and head; default: 8 bits with 4-bit weights.")
@click.option("--out", "folder", type=click.Path(path_type=Path, file_okay=False), help="Write the rounded checkpoint.")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model: str, weights: str, embedding: str | None, folder: Path | None, tensors: bool, as_json: bool) -> None:
    """Round MODEL's weights to a block format and report bytes and error, part by part.

    With --out, the rounded weights are written as a float checkpoint folder that every other command reads, so that
    the loss can be measured before anything is shipped (attar eval). attar export stores the same blocks as bytes.
    """
    source = model_source(model)
    scheme = make_scheme(weights, embedding)
    with err.status(f"rounding to {scheme.name}"):
        report = measure_scheme(source, scheme) if folder is None else quantize_checkpoint(source, folder, scheme)
    if as_json:
        print_json(_to_json(report))
        return
    rows = _tensor_rows(report) if tensors else _part_rows(report)
    out.print(
        make_table(f"{model} as {scheme.name}", ["part", "types", "bytes", "bits/weight", "relative error"], rows)
    )
    out.print(
        f"{spell_bytes(report.size_bytes)}, {report.bits_per_weight:.2f} bits a weight, "
        f"relative error {report.relative_error:.4f}"
    )
    for tensor in report.fallbacks:
        err.print(f"note: {tensor.name} is {tensor.type_name}: {tensor.fallback}", soft_wrap=True)
    if folder is not None:
        out.print(f"wrote {folder}", soft_wrap=True)


def _part_of(name: str) -> str:
    for part, words in {
        "embedding and head": ("embed_tokens", "lm_head"),
        "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "mlp": ("gate_proj", "up_proj", "down_proj"),
    }.items():
        if any(word in name for word in words):
            return part
    return "norms"


def _part_rows(report: QuantizeReport) -> list[tuple[str, ...]]:
    parts: dict[str, list[int]] = {}
    for index, tensor in enumerate(report.tensors):
        parts.setdefault(_part_of(tensor.name), []).append(index)
    return [_row(part, report, members) for part, members in parts.items()]


def _tensor_rows(report: QuantizeReport) -> list[tuple[str, ...]]:
    return [_row(tensor.name, report, [index]) for index, tensor in enumerate(report.tensors)]


def _row(label: str, report: QuantizeReport, members: list[int]) -> tuple[str, ...]:
    part = QuantizeReport(report.scheme, tuple(report.tensors[index] for index in members))
    types = ", ".join(sorted({tensor.type_name for tensor in part.tensors}))
    return label, types, spell_bytes(part.size_bytes), f"{part.bits_per_weight:.2f}", f"{part.relative_error:.5f}"


def _to_json(report: QuantizeReport) -> dict[str, object]:
    return {
        "scheme": report.scheme.name,
        "size_bytes": report.size_bytes,
        "bits_per_weight": report.bits_per_weight,
        "relative_error": report.relative_error,
        "tensors": [
            {
                "name": tensor.name,
                "type": tensor.type_name,
                "size_bytes": tensor.size_bytes,
                "relative_error": tensor.relative_error,
                "fallback": tensor.fallback,
            }
            for tensor in report.tensors
        ],
    }
