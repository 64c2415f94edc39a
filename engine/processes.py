"""One run in several processes, as on several machines: who speaks for it, and what the others take on trust.

Every process executes the same program on the same data and holds its part of every array (see `sharding`). The first
one alone reads and writes what all must see alike, such as the run folder, and tells the others. A run in one process
is its own first one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

Value = TypeVar("Value")

AUTO = "auto"
_MESSAGE_BYTES = 1 << 16


class ProcessError(RuntimeError):
    """Processes that cannot become one run, or what the first of them could not do."""


def join(coordinator: str, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Makes this process one of a run, before it touches any device.

    Args:
      coordinator: HOST:PORT where the first process listens, the same in all; "auto" takes it, the number of
        processes and this one's id from the environment (Slurm, Open MPI, Cloud TPU, Kubernetes, or
        JAX_COORDINATOR_ADDRESS and its companions).
      num_processes: In all.
      process_id: Of this one, from 0.

    Raises:
      ProcessError: If the others cannot be reached or the environment names none.
    """
    address = None if coordinator == AUTO else coordinator
    try:
        jax.distributed.initialize(address, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise ProcessError(
            f"process {process_id if process_id is not None else ''} cannot join the run at {coordinator}: {error}"
        ) from None


def is_first() -> bool:
    """Whether this process writes and speaks for the run."""
    return jax.process_index() == 0


def by_first(action: Callable[[], Value]) -> Value:
    """What `action` gives in the first process, told to all; it must be JSON-able. All processes call this together.

    Raises:
      ProcessError: In the other processes, if it raised in the first one; there the exception itself goes on.
    """
    if jax.process_count() == 1:
        return action()
    from jax.experimental import multihost_utils

    failure: Exception | None = None
    told: dict[str, Any] = {}
    if is_first():
        try:
            told = {"value": action()}
        except Exception as error:
            failure, told = error, {"error": str(error)[:1000]}
    told = json.loads(bytes(multihost_utils.broadcast_one_to_all(_packed(told))).rstrip(b"\0"))
    if failure is not None:
        raise failure
    if "error" in told:
        raise ProcessError(told["error"])
    value: Value = told["value"]
    return value


def _packed(content: dict[str, Any]) -> np.ndarray[Any, Any]:
    text = json.dumps(content).encode()
    if len(text) > _MESSAGE_BYTES:
        raise ProcessError(f"a message between processes holds {_MESSAGE_BYTES} bytes, got {len(text)}")
    return np.frombuffer(text.ljust(_MESSAGE_BYTES, b"\0"), np.uint8)


def any_problem(problem: str | None) -> str | None:
    """The first problem that any process has, told to all; None where none has one. All call this together."""
    if jax.process_count() == 1:
        return problem
    from jax.experimental import multihost_utils

    told = np.asarray(multihost_utils.process_allgather(_packed({"problem": (problem or "")[:1000]})))
    problems = (json.loads(row.tobytes().rstrip(b"\0"))["problem"] for row in told)
    return next((text for text in problems if text), None)


def share(items: Sequence[Value]) -> Sequence[Value]:
    """This process's part of some work that all of them divide."""
    return items[jax.process_index() :: jax.process_count()]
