"""What a training configuration must fulfil by itself, before any model or file is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from attar.distill.data import PromptFormat
from attar.distill.losses import Normalization
from attar.distill.methods.method import MethodName
from attar.distill.progress import SinkName
from attar.distill.records import Documents
from attar.distill.step import ComputeDtype, Schedule
from attar.quantize.policy import SCHEMES

if TYPE_CHECKING:
    from attar.distill.config import TrainConfig

_POSITIVE_INTEGERS = (
    "max_new_tokens",
    "steps",
    "batch_size",
    "samples_per_prompt",
    "accumulation_steps",
    "prompt_buckets",
    "completion_buckets",
    "eval_every",
    "eval_examples",
    "calibration_examples",
    "checkpoint_every",
    "keep_checkpoints",
)


def check_config(config: TrainConfig) -> None:
    """Every rule about settings and their combinations.

    Raises:
      ValueError: If one is broken; the message names the setting, what it must be and what it is.
    """
    _check_choices(config)
    _check_numbers(config)
    _check_models(config)
    _check_data(config)
    _check_targets(config)
    _check_reward(config)


def _check_choices(config: TrainConfig) -> None:
    choices = (
        ("method", get_args(MethodName)),
        ("prompt_format", get_args(PromptFormat)),
        ("normalization", get_args(Normalization)),
        ("schedule", get_args(Schedule)),
        ("compute_dtype", get_args(ComputeDtype)),
        ("documents", get_args(Documents)),
    )
    for name, allowed in choices:
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(config, name)!r}")
    if config.qat is not None and config.qat not in SCHEMES:
        raise ValueError(f"qat must be one of {', '.join(SCHEMES)}, got {config.qat!r}")


def _check_numbers(config: TrainConfig) -> None:
    for name in _POSITIVE_INTEGERS:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in ("learning_rate", "max_grad_norm", "divergence_temperature", "teacher_temperature"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if not 0 <= config.warmup_steps <= config.steps:
        raise ValueError(f"warmup_steps must be between 0 and steps, got {config.warmup_steps} and {config.steps}")
    if config.weight_decay < 0:
        raise ValueError(f"weight_decay must not be negative, got {config.weight_decay}")
    if config.batch_size % config.accumulation_steps:
        raise ValueError(
            f"accumulation_steps must divide batch_size, got {config.accumulation_steps} and {config.batch_size}"
        )
    rows, shards = config.batch_size // config.accumulation_steps, 1 if config.mesh is None else config.mesh.row_shards
    if rows % shards:
        raise ValueError(
            f"data times fsdp of the mesh must divide the {rows} rows that are worked on at a time (batch_size over "
            f"accumulation_steps), got {config.mesh}"
        )


def _check_data(config: TrainConfig) -> None:
    if not config.data_paths:
        raise ValueError("data must name at least one file, got none")
    weights = config.data_weights
    if weights is not None and len(weights) != len(config.data_paths):
        raise ValueError(f"there must be one of data_weights per entry of data, got {len(weights)} for {config.data}")
    if weights is not None and not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"data_weights must be positive, got {weights}")
    unknown = [name for name in config.log if name not in get_args(SinkName)]
    if unknown:
        raise ValueError(f"log must name {' or '.join(get_args(SinkName))}, got {', '.join(unknown)}")
    if config.max_tokens is not None and config.max_tokens < 2:
        raise ValueError(f"max_tokens must be at least 2, got {config.max_tokens}")
    if config.pack_tokens is not None and not config.pack:
        raise ValueError("pack_tokens is the length of packed rows: give pack too, or leave it out")
    on_policy = config.make_method().on_policy_fraction
    if config.pack and on_policy > 0:
        raise ValueError(
            f"pack is for batches of the data alone: samples of the student are not packed, and lambda is {on_policy}; "
            "set lambda to 0 or leave pack out"
        )


def _check_models(config: TrainConfig) -> None:
    names = ("student", "student_layers", "student_shape", "student_prune")
    given = [name for name in names if getattr(config, name) is not None]
    if len(given) != 1:
        raise ValueError(f"exactly one of {', '.join(names)} must be given, got {', '.join(given) or 'none'}")
    if config.student_prune is not None and not config.student_prune:
        raise ValueError("student_prune must keep less than the whole teacher, got no size")
    if config.method == "uld" and (given[0] != "student" or config.pack):
        raise ValueError("method uld is for a student of another vocabulary, unpacked: name one as student")
    unneeded = config.method == "sft" or config.targets is not None
    if config.teacher is None and not (unneeded and given[0] == "student"):
        needs = given[0] if unneeded else f"method {config.method}"
        raise ValueError(f"{needs} needs a teacher, got none")


def _check_targets(config: TrainConfig) -> None:
    """Stored targets are of the data alone; what else they cannot tell is known when their folder is opened."""
    if config.targets is None:
        return
    if config.method not in ("pretrain", "gkd"):
        raise ValueError(
            f"targets are read by the methods pretrain and gkd, got method {config.method}; leave them out"
        )
    if config.method == "gkd" and config.on_policy_fraction != 0.0:
        raise ValueError(
            f"method gkd with targets needs lambda 0, got {config.on_policy_fraction}: the student's answers have none"
        )


def _check_reward(config: TrainConfig) -> None:
    if config.reward is None:
        return
    if config.method != "gkd" or config.on_policy_fraction == 0.0:
        raise ValueError(
            "a reward is of samples that the student draws: it needs method gkd and a lambda above 0, "
            f"got {config.method} and {config.on_policy_fraction}"
        )
    if config.batch_size < 2 or config.batch_size % config.samples_per_prompt:
        raise ValueError(
            "batch_size must be at least 2 and a multiple of samples_per_prompt for a reward, "
            f"got {config.batch_size} and {config.samples_per_prompt}"
        )
