"""What a run reads besides its models: examples within the models' limits, and hashes that say which they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from attar.distill.batches import Buckets, choose_buckets
from attar.distill.config import TrainConfig
from attar.distill.data import DataSet, Limits, load_examples
from attar.distill.models import RunModels, params_fingerprint
from attar.distill.run_folder import RunError


def load_data(config: TrainConfig, models: RunModels) -> tuple[DataSet, DataSet | None]:
    """The training examples, and the held-out ones where the run evaluates.

    Raises:
      DataError: If a file cannot be used.
      RunError: If the models' context leaves no room for a prompt.
    """
    needs_completion = not (config.method == "gkd" and config.on_policy_fraction == 1.0)
    limits = Limits(max_prompt_tokens(config, models), config.max_new_tokens, needs_completion)
    data = load_examples(Path(config.data), models.tokenizer, limits, config.prompt_format)
    if config.eval_data is None:
        return data, None
    held_out = load_examples(
        Path(config.eval_data),
        models.tokenizer,
        Limits(limits.prompt_tokens, limits.completion_tokens),
        config.prompt_format,
        config.eval_examples,
    )
    return data, held_out


def max_prompt_tokens(config: TrainConfig, models: RunModels) -> int:
    """Longest prompt that leaves room for a completion in both models' contexts.

    Raises:
      RunError: If no room is left.
    """
    contexts = [network.config.max_position_embeddings for network in (models.student, models.teacher) if network]
    room = min(contexts) - config.max_new_tokens
    if room < 1:
        raise RunError(
            f"max_new_tokens must be below the context of {min(contexts)} tokens, got {config.max_new_tokens}; lower it"
        )
    return room if config.max_prompt_tokens is None else min(room, config.max_prompt_tokens)


def held_out_buckets(train: Buckets, held_out: DataSet) -> Buckets:
    """The training shapes, so that little more is compiled, and longer ones where held-out prompts need them."""
    own = choose_buckets(held_out, 1, 1)
    longest = max(train.completion[-1], own.completion[-1])
    return Buckets(tuple(sorted({*train.prompt, max(train.prompt[-1], own.prompt[-1])})), (longest,))


def resolved_config(config: TrainConfig, models: RunModels, data: DataSet, held_out: DataSet | None) -> dict[str, Any]:
    """The run's configuration with what its paths stand for: hashes of data, weights and vocabulary."""
    teacher = models.teacher
    return {
        **config.to_json(),
        "max_prompt_tokens": max_prompt_tokens(config, models),
        "data_sha256": data.sha256,
        "data_examples": len(data.examples),
        "data_completions_cut": data.num_cut,
        "eval_data_sha256": None if held_out is None else held_out.sha256,
        "teacher_fingerprint": None if teacher is None else params_fingerprint(teacher.params),
        "student_fingerprint": params_fingerprint(models.student.params),
        "tokenizer_fingerprint": models.tokenizer.fingerprint(),
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
    }
