"""`attar plan`: what training a configuration would cost on devices that are not there."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import jax

from attar.cli._console import err, make_table, out, print_json, spell_bytes, spell_seconds
from attar.cli._mesh import read_mesh
from attar.cli._models import model_source
from attar.distill.hardware import HARDWARE, Hardware
from attar.distill.plan import PlannedRun, StepCost, largest_batch, plan_step
from attar.distill.step import ComputeDtype
from attar.engine.checkpoint import load_config
from attar.engine.config import ModelConfig
from attar.engine.presets import PRESETS
from attar.engine.sharding import copied_weights
from attar.runtime.hub import HubError

_POSITIVE = click.IntRange(1)
_ABOVE_0 = click.FloatRange(0, min_open=True)
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def _count(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Reads a number such as 500B or 1e12."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)([KMBT]?)", value, re.IGNORECASE)
    count = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    if count <= 0:
        raise click.BadParameter(f"must be a positive number such as 500B or 1e12, got {value!r}", ctx, param)
    return count


@click.command("plan")
@click.option("--student", required=True, help="A preset, such as gemma2-2b, or a checkpoint folder.")
@click.option("--teacher", help="Likewise; without one the next token is learnt, not a distribution.")
@click.option("--mesh", required=True, help="Devices, such as fsdp=256 or data=4,fsdp=64.")
@click.option("--batch-size", type=_POSITIVE, default=256, show_default=True, help="Rows of a step.")
@click.option("--sequence", type=_POSITIVE, default=2048, show_default=True, help="Tokens of a row.")
@click.option("--tokens", callback=_count, default="500B", show_default=True, help="To train on in all.")
@click.option("--accumulation-steps", type=_POSITIVE, default=1, show_default=True, help="Parts of a batch.")
@click.option("--remat/--no-remat", default=True, show_default=True, help="Recompute activations, for memory.")
@click.option("--compute-dtype", type=click.Choice(["float32", "bfloat16"]), default="bfloat16", show_default=True)
@click.option("--hardware", type=click.Choice(list(HARDWARE)), default="v5e", show_default=True, help="Of each device.")
@click.option(
    "--compiler", type=click.Choice(["auto", "cpu", "tpu"]), default="auto", show_default=True, help="See below."
)
@click.option("--peak-flops", type=_ABOVE_0, help="Operations a second of a device; default: the hardware's.")
@click.option("--memory-gb", type=_ABOVE_0, help="10^9 bytes of a device; default: the hardware's.")
@click.option("--bandwidth-gb", type=_ABOVE_0, help="10^9 bytes a second of its memory; default: the hardware's.")
@click.option("--mfu", type=click.FloatRange(0, 1, min_open=True), default=0.4, show_default=True, help="Of the peak.")
@click.option("--largest-batch", "search", is_flag=True, help="Also find the most rows that fit: some compilations.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    student: str,
    teacher: str | None,
    mesh: str,
    batch_size: int,
    sequence: int,
    tokens: float,
    accumulation_steps: int,
    remat: bool,
    compute_dtype: ComputeDtype,
    hardware: str,
    compiler: str,
    peak_flops: float | None,
    memory_gb: float | None,
    bandwidth_gb: float | None,
    mfu: float,
    search: bool,
    as_json: bool,
) -> None:
    """Compile the training step of a configuration for devices that are not there, and print what it would cost:
    bytes of each device, operations, time. Nothing is allocated.

    \b
    attar plan --teacher gemma2-9b --student gemma2-2b --mesh fsdp=256 --tokens 500B

    For a TPU the TPU compiler is used where libtpu is installed (pip install libtpu; no TPU is needed), which takes
    minutes. Else, and with --compiler cpu, it is XLA's for virtual CPU devices, whose temporaries are an upper bound.
    The time is an estimate: operations at a share --mfu of the peak, or memory's traffic where that is slower;
    transfers between devices are taken to overlap.
    """
    began = time.perf_counter()
    shape = read_mesh(mesh)
    run = PlannedRun(
        _model(student),
        None if teacher is None else _model(teacher),
        shape,
        batch_size,
        sequence,
        accumulation_steps,
        remat,
        compute_dtype,
    )
    device = _device(HARDWARE[hardware], peak_flops, memory_gb, bandwidth_gb)
    devices, compiler = _devices(shape.num_devices, hardware, compiler)
    with err.status(f"compiling the step for {shape.num_devices} devices"):
        cost = plan_step(run, devices)
    rows = None
    if search:
        with err.status("looking for the largest batch"):
            rows = largest_batch(run, devices, device.memory_bytes)
    summary = _summary(run, cost, device, tokens, mfu, rows)
    summary |= {"hardware": hardware, "compiler": compiler, "planning_seconds": round(time.perf_counter() - began, 1)}
    if as_json:
        print_json(summary)
    else:
        _print(run, cost, device, summary)


def _model(name: str) -> ModelConfig:
    if name in PRESETS:
        return PRESETS[name]
    try:
        return load_config(Path(model_source(name)))
    except HubError as error:
        raise click.ClickException(f"{error}; shapes known by name: {', '.join(PRESETS)}") from None


def _device(preset: Hardware, peak: float | None, memory_gb: float | None, bandwidth_gb: float | None) -> Hardware:
    return dataclasses.replace(
        preset,
        peak_flops=peak or preset.peak_flops,
        memory_bytes=memory_gb * 1e9 if memory_gb else preset.memory_bytes,
        bandwidth_bytes=bandwidth_gb * 1e9 if bandwidth_gb else preset.bandwidth_bytes,
    )


def _devices(count: int, hardware: str, compiler: str) -> tuple[Sequence[Any], str]:
    """Devices to compile for, and the name of the compiler."""
    topology = HARDWARE[hardware].tpu_topologies.get(count)
    installed = importlib.util.find_spec("libtpu") is not None
    if compiler == "tpu" and topology is None:
        known = ", ".join(str(size) for size in HARDWARE[hardware].tpu_topologies) or "none"
        raise click.UsageError(f"--compiler tpu knows {hardware} in slices of so many: {known}; got {count}")
    if compiler == "tpu" and not installed:
        raise click.UsageError("--compiler tpu needs libtpu, which is not installed; run: pip install libtpu")
    if compiler != "cpu" and topology is not None and installed:
        from jax.experimental import topologies

        for name, value in {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}.items():
            os.environ.setdefault(name, value)  # or libtpu asks a cloud's servers what machine this is
        described: Any = topologies.get_topology_desc(topology, platform="tpu")
        return described.devices, f"tpu {topology}"
    settings: Any = jax.config  # its attributes are made at run time, so type checkers know none
    settings.update("jax_platforms", "cpu")
    settings.update("jax_num_cpu_devices", count)
    return jax.devices(), "cpu"


def _summary(
    run: PlannedRun, cost: StepCost, device: Hardware, tokens: float, mfu: float, rows: int | None
) -> dict[str, Any]:
    count = run.mesh.num_devices
    seconds = cost.seconds(device, mfu, count)
    steps = tokens / run.tokens
    found: dict[str, Any] = {
        "mesh": str(run.mesh),
        "devices": count,
        "student_parameters": run.student.num_parameters,
        "teacher_parameters": None if run.teacher is None else run.teacher.num_parameters,
        "bytes_per_device": {**dataclasses.asdict(cost.bytes), "total": cost.bytes.total},
        "memory_bytes": device.memory_bytes,
        "fits": cost.bytes.total <= device.memory_bytes,
        "flops_per_step": cost.flops,
        "analytic_flops_per_step": cost.analytic_flops,
        "mfu": mfu,
        "step_seconds": seconds,
        "tokens_per_second": run.tokens / seconds,
        "steps": steps,
        "days": steps * seconds / 86400,
        "copied_weights": copied_weights(run.student, run.mesh),
    }
    return found if rows is None else {**found, "largest_batch": rows}


def _print(run: PlannedRun, cost: StepCost, device: Hardware, summary: dict[str, Any]) -> None:
    held = cost.bytes
    rows = [
        ("weights", spell_bytes(held.weights)),
        ("optimizer", spell_bytes(held.optimizer)),
        ("teacher", spell_bytes(held.teacher)),
        ("temporaries", spell_bytes(held.temporaries)),
        ("  of which gradients", spell_bytes(held.gradients)),
        ("total", spell_bytes(held.total)),
        ("memory", spell_bytes(device.memory_bytes)),
    ]
    title = f"each of {summary['devices']} devices ({summary['hardware']}), by the {summary['compiler']} compiler"
    out.print(make_table(title, ["", "bytes"], rows))
    verdict = "fits" if summary["fits"] else "[bold]does not fit[/]: fewer rows, more devices or --accumulation-steps"
    step = [
        ("operations, XLA's count", f"{cost.flops:.3e}"),
        ("operations, 6 N D + 2 N D of the teacher", f"{cost.analytic_flops:.3e}"),
        (f"time at {summary['mfu']:.0%} of {device.peak_flops:.3g} a second", spell_seconds(summary["step_seconds"])),
        ("tokens a second", f"{summary['tokens_per_second']:,.0f}"),
        ("steps", f"{summary['steps']:,.0f}"),
        ("days", f"{summary['days']:,.1f}"),
    ]
    if "largest_batch" in summary:
        step.append(("largest batch that fits, rows", f"{summary['largest_batch']:,}"))
    out.print(make_table(f"a step of {run.batch_size} rows of {run.sequence} tokens", ["", ""], step))
    if summary["copied_weights"]:
        out.print(f"not divided: {', '.join(summary['copied_weights'])}", soft_wrap=True)
    out.print(f"{verdict}; planned in {summary['planning_seconds']} s", soft_wrap=True)
