"""Options that say which devices and processes share a run."""

from __future__ import annotations

from typing import Any

import click
import jax

from attar.engine.processes import AUTO, join
from attar.engine.sharding import MeshShape


def join_processes(options: dict[str, Any]) -> None:
    """Takes out the options that say which process of a run this is, and joins the others."""
    coordinator, number, index = (options.pop(name) for name in ("coordinator", "num_processes", "process_id"))
    if coordinator is None:
        if number is not None or index is not None:
            raise click.UsageError("--num-processes and --process-id would do nothing without --coordinator")
        return
    if options["mesh"] is None:
        raise click.UsageError("--coordinator would do nothing without --mesh: name one over all processes' devices")
    if coordinator == AUTO and (number is not None or index is not None):
        raise click.UsageError("--coordinator auto finds out --num-processes and --process-id; leave them out")
    if coordinator != AUTO and (number is None or index is None or index >= number):
        raise click.UsageError(
            f"--coordinator needs --num-processes and a --process-id below it, got {number} and {index}"
        )
    join(coordinator, number, index)


def device_mesh(text: str | None) -> MeshShape | None:
    """The mesh that an option names; `auto` divides weights and rows over all devices."""
    if text is None:
        return None
    if text == AUTO:
        return MeshShape(fsdp=jax.device_count())
    shape = read_mesh(text)
    if shape.num_devices != jax.device_count():
        raise click.UsageError(f"--mesh {shape} takes {shape.num_devices} devices, there are {jax.device_count()}")
    return shape


def read_mesh(text: str) -> MeshShape:
    """The mesh that an option spells, whatever devices there are."""
    try:
        return MeshShape.parse(text)
    except ValueError as error:
        raise click.UsageError(f"--mesh: {error}") from None
