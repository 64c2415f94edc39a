"""What a run reads besides its models: examples within the models' limits, and hashes that say which they were."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from attar.distill.batches import BatchStream, Buckets, choose_buckets
from attar.distill.config import TrainConfig
from attar.distill.data import TEXT_WINDOW, DataError, DataSet, Limits, Windows, load_examples, load_mixture
from attar.distill.mixture import Mixture
from attar.distill.models import RunModels, params_fingerprint
from attar.distill.packing import PackedStream, packed_lengths
from attar.distill.rewards import BUILT_IN
from attar.distill.run_folder import RunError
from attar.distill.target_folder import TargetFolder, TargetKind, examples_sha256
from attar.distill.teacher_view import TeacherReader

_PACK_MULTIPLE = 64


def load_data(config: TrainConfig, models: RunModels) -> tuple[DataSet, DataSet | None]:
    """The training examples, and the held-out ones where the run evaluates.

    Raises:
      DataError: If a file cannot be used.
      RunError: If the models' context leaves no room for a prompt.
    """
    needs_completion = (
        not (config.method in ("gkd", "uld") and config.on_policy_fraction == 1.0) or config.reward in BUILT_IN
    )
    windows = Windows(max_tokens(config, models))
    limits = Limits(max_prompt_tokens(config, models), config.max_new_tokens, needs_completion, windows)
    data = load_mixture(
        config.data_paths, config.data_weights, models.tokenizer, limits, config.prompt_format, config.documents
    )
    _check_texts(config, data)
    if config.eval_data is None:
        return data, None
    held_out = load_examples(
        Path(config.eval_data),
        models.tokenizer,
        Limits(limits.prompt_tokens, limits.completion_tokens, windows=held_out_windows(windows.tokens)),
        config.prompt_format,
        config.eval_examples,
        config.documents,
    )
    return data, held_out


def held_out_windows(tokens: int) -> Windows:
    """Windows for scoring a text, each token of which sees at least half a window before it; its end is not scored."""
    return Windows(tokens, max(tokens // 2, 1), ended=False)


def max_tokens(config: TrainConfig, models: RunModels) -> int:
    """Window that plain text is cut into.

    Raises:
      RunError: If it is longer than the models' context.
    """
    context = _context(models)
    if config.max_tokens is not None and config.max_tokens > context:
        raise RunError(f"max_tokens must be at most the context of {context} tokens, got {config.max_tokens}; lower it")
    return min(TEXT_WINDOW, context) if config.max_tokens is None else config.max_tokens


def pack_tokens(config: TrainConfig, data: DataSet) -> int | None:
    """Columns of a packed row; None where rows are not packed."""
    if not config.pack:
        return None
    longest = int(packed_lengths(data.examples).max())
    return config.pack_tokens or -(-longest // _PACK_MULTIPLE) * _PACK_MULTIPLE


def open_stream(config: TrainConfig, models: RunModels, data: DataSet, buckets: Buckets) -> BatchStream | PackedStream:
    """The run's batches of the data.

    Raises:
      DataError: If the data cannot fill them.
    """
    pad = models.tokenizer.pad_token_id
    pad = models.tokenizer.eos_token_ids[0] if pad is None else pad
    mixture = Mixture([file.num_examples for file in data.files], data.weights, config.seed)
    columns = pack_tokens(config, data)
    if columns is None:
        return BatchStream(data.examples, mixture, config.batch_size, config.seed, buckets, pad)
    return PackedStream(data.examples, mixture, config.batch_size, config.seed, columns, pad)


def _check_texts(config: TrainConfig, data: DataSet) -> None:
    """Refuses what plain text cannot do, and settings of it where there is none."""
    files = ", ".join(config.data_paths)
    if data.num_texts and config.make_method().on_policy_fraction > 0:
        raise DataError(f"{files}: plain text has no prompts that the student could answer; set lambda to 0")
    if config.max_tokens is not None and not data.num_texts:
        raise DataError(f"max_tokens would do nothing: {files} holds no plain text")


def open_teacher_reader(config: TrainConfig, models: RunModels) -> TeacherReader | None:
    """How a teacher of another vocabulary reads the run's batches; None where the teacher has the student's.

    Raises:
      DataError: If a prompt is too long in the teacher's tokens, or the data is plain text.
      RunError: If the teacher's context is too short.
    """
    if models.teacher_tokenizer is None or models.teacher is None:
        return None
    # A teacher may need more tokens for the same text; beyond twice as many, what is longer is not compared.
    max_tokens = 2 * config.max_new_tokens
    room = models.teacher.config.max_position_embeddings - max_tokens
    if room < 1:
        raise RunError(
            f"max_new_tokens must be below half the teacher's context for method uld, got {config.max_new_tokens}"
        )
    limits = Limits(room, max_tokens, needs_completion=False)
    data = load_mixture(config.data_paths, config.data_weights, models.teacher_tokenizer, limits, config.prompt_format)
    prompts = [example.prompt for example in data.examples]
    return TeacherReader(prompts, models.tokenizer, models.teacher_tokenizer, max_tokens)


def open_targets(config: TrainConfig, models: RunModels, data: DataSet) -> TargetFolder | None:
    """The stored targets that the run reads, None where it reads none.

    Raises:
      RunError: If they are of other tokens, of another teacher or temperature, over a larger vocabulary, or do not tell
        the run's divergence.
      PartError: If the folder cannot be read.
    """
    if config.targets is None:
        return None
    targets = TargetFolder(Path(config.targets))
    made = targets.settings
    _check_divergence(config, made.kind)
    temperature = config.divergence_temperature if config.teacher_temperature is None else config.teacher_temperature
    wanted: list[tuple[str, object, object]] = [
        ("the tokenizer", made.tokenizer_fingerprint[:12], models.tokenizer.fingerprint()[:12]),
        ("the examples", made.examples_sha256[:12], examples_sha256(data.examples)[:12]),
    ]
    if made.kind != "states":
        wanted.append(
            ("the teacher's temperature", made.temperature, 1.0 if config.method == "pretrain" else temperature)
        )
    if models.teacher is not None:
        wanted.append(("the teacher", made.teacher_fingerprint[:12], params_fingerprint(models.teacher.params)[:12]))
    for name, labelled, here in wanted:
        if labelled != here:
            raise RunError(
                f"{config.targets}: {name} must be what was labelled, got {here} for {labelled}; run attar label with "
                "this run's --data, --max-new-tokens and --prompt-format, or change the run"
            )
    if made.vocab_size > models.student.config.vocab_size:
        raise RunError(
            f"{config.targets}: the student's vocabulary must hold the {made.vocab_size} tokens that were labelled, "
            f"got {models.student.config.vocab_size}"
        )
    return targets


def _check_divergence(config: TrainConfig, kind: TargetKind) -> None:
    """A part of the teacher's distribution tells its forward KL alone."""
    forward = config.divergence == "forward_kl" or (config.divergence == "jsd" and config.beta == 0.0)
    if config.method == "gkd" and kind != "states" and not forward:
        raise RunError(
            f"{config.targets}: targets of kind {kind} tell the divergence forward_kl alone, got {config.divergence}; "
            "choose it, or label with --keep states"
        )


def max_prompt_tokens(config: TrainConfig, models: RunModels) -> int:
    """Longest prompt that leaves room for a completion in both models' contexts.

    Raises:
      RunError: If no room is left.
    """
    context = _context(models)
    room = context - config.max_new_tokens
    if room < 1:
        raise RunError(
            f"max_new_tokens must be below the context of {context} tokens, got {config.max_new_tokens}; lower it"
        )
    return room if config.max_prompt_tokens is None else min(room, config.max_prompt_tokens)


def _context(models: RunModels) -> int:
    """The shorter of both models' contexts."""
    return min(network.config.max_position_embeddings for network in (models.student, models.teacher) if network)


def held_out_buckets(train: Buckets, held_out: DataSet) -> Buckets:
    """The training shapes, so that little more is compiled, and longer ones where held-out prompts need them."""
    own = choose_buckets(held_out, 1, 1)
    longest = max(train.completion[-1], own.completion[-1])
    return Buckets(tuple(sorted({*train.prompt, max(train.prompt[-1], own.prompt[-1])})), (longest,))


def resolved_config(
    config: TrainConfig,
    models: RunModels,
    data: DataSet,
    held_out: DataSet | None,
    targets: TargetFolder | None = None,
) -> dict[str, Any]:
    """The run's configuration with what its paths stand for: hashes of data, weights and vocabulary."""
    teacher = models.teacher
    return {
        **config.to_json(),
        "max_prompt_tokens": max_prompt_tokens(config, models),
        "max_tokens": max_tokens(config, models) if data.num_texts else None,
        "pack_tokens": pack_tokens(config, data),
        "data_files": [dataclasses.asdict(file) for file in data.files],
        "data_sha256": data.sha256,
        "data_examples": len(data.examples),
        "data_completions_cut": data.num_cut,
        "eval_data_sha256": None if held_out is None else held_out.sha256,
        "targets_sha256": None if targets is None else targets.sha256,
        "teacher_tokenizer_fingerprint": models.teacher_tokenizer and models.teacher_tokenizer.fingerprint(),
        "teacher_fingerprint": None if teacher is None else params_fingerprint(teacher.params),
        # What is drawn from the seed may differ in its last bits from mesh to mesh.
        "student_fingerprint": None if config.student_shape else params_fingerprint(models.student.params),
        "tokenizer_fingerprint": models.tokenizer.fingerprint(),
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
    }
