"""The models of a training run: teacher, student in its initial state, and the tokenizer they share."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array

from attar.distill.config import TrainConfig
from attar.distill.evaluate import Network
from attar.distill.run_folder import RunError
from attar.engine.checkpoint import Model, load_model
from attar.engine.config import ConfigError, ModelConfig
from attar.engine.presets import PRESETS
from attar.engine.sharding import to_host, weight_shardings
from attar.engine.surgery import take_layers
from attar.engine.tokenizer import Tokenizer
from attar.engine.transformer import Params, init_params, param_shapes

_FINGERPRINT_BYTES = 1 << 16  # of every weight: enough to tell two models apart without reading gigabytes


@dataclass(frozen=True)
class RunModels:
    """What a run trains and learns from.

    Attributes:
      student: Initial weights; where it is to be pruned, the whole teacher until `initial_student` has cut it.
      teacher: None where the run has none.
      tokenizer: The student's, whose vocabulary is the teacher's too where `teacher_tokenizer` is None.
      teacher_tokenizer: Of a teacher of another vocabulary, for the method uld.
      tokenizer_source: Folder or file that the tokenizer came from.
    """

    student: Network
    teacher: Network | None
    tokenizer: Tokenizer
    tokenizer_source: Path
    teacher_tokenizer: Tokenizer | None = None


def load_models(config: TrainConfig) -> RunModels:
    """Loads the teacher and loads, cuts or draws the student.

    Raises:
      RunError: If the two vocabularies differ, or the student's description is no model.
      CheckpointError: If a model cannot be read.
    """
    teacher = None if config.teacher is None else load_model(Path(config.teacher))
    network = None if teacher is None else Network(teacher.params, teacher.config)
    if config.student is not None:
        student = load_model(Path(config.student))
        own = Network(student.params, student.config)
        if teacher is not None and config.method == "uld":
            return RunModels(own, network, student.tokenizer, Path(config.student), teacher.tokenizer)
        if teacher is not None:
            check_vocabularies(config, teacher, student)
        return RunModels(own, network, student.tokenizer, Path(config.student))
    if teacher is None or config.teacher is None:
        raise RunError("a student made from a teacher's layers or shape needs a teacher; name one")
    student_network = _made_student(config, teacher)
    return RunModels(student_network, network, teacher.tokenizer, Path(config.teacher))


def check_vocabularies(config: TrainConfig, teacher: Model, student: Model) -> None:
    """Distributions can only be compared over one vocabulary.

    Raises:
      RunError: If the token ids of the two models mean different things.
    """
    ours, theirs = student.tokenizer, teacher.tokenizer
    if ours.fingerprint() != theirs.fingerprint():
        raise RunError(
            f"teacher and student must share one vocabulary: {config.teacher} has {theirs.vocab_size} tokens "
            f"(fingerprint {theirs.fingerprint()[:12]}), {config.student} has {ours.vocab_size} "
            f"({ours.fingerprint()[:12]}); start the student from the teacher's layers or a shape, or use method uld"
        )


def params_fingerprint(params: Params) -> str:
    """Hash of names, shapes and the first bytes of every weight."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        count = _FINGERPRINT_BYTES // leaf.dtype.itemsize
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(to_host(_leading_part(leaf, count)).reshape(-1)[:count].tobytes())
    return digest.hexdigest()


def _leading_part(leaf: Array, count: int) -> Array:
    """A corner of the array that holds its first `count` elements, and little more."""
    inner = math.prod(leaf.shape[1:])
    if leaf.ndim > 1 and inner >= count:
        return _leading_part(leaf[0], count)
    return leaf[: -(-count // inner)]


def _made_student(config: TrainConfig, teacher: Model) -> Network:
    if config.student_prune is not None:
        return Network(teacher.params, teacher.config)
    return _from_layers(config, teacher) if config.student_layers else _from_shape(config, teacher)


def _from_layers(config: TrainConfig, teacher: Model) -> Network:
    try:
        shape, params = take_layers(teacher.config, teacher.params, config.student_layers or ())
    except ValueError as error:
        raise RunError(f"student_layers: {error}") from None
    return Network(params, shape)


def _from_shape(config: TrainConfig, teacher: Model) -> Network:
    """Random weights in the named shape, over the teacher's vocabulary and with its token ids."""
    ids = ("vocab_size", "bos_token_id", "eos_token_ids", "pad_token_id")
    shape = _shape(config.student_shape or "").replace(**{name: getattr(teacher.config, name) for name in ids})
    key, shardings = jax.random.key(config.seed), weight_shardings(param_shapes(shape), shape)
    if shardings is None:
        return Network(init_params(shape, key), shape)
    # No device ever holds more than its part.
    return Network(jax.jit(partial(init_params, shape), out_shardings=shardings)(key), shape)


def _shape(name: str) -> ModelConfig:
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return ModelConfig.from_hf(raw)
    except OSError:
        raise RunError(f"student_shape must be a config.json or one of {', '.join(PRESETS)}; got {name!r}") from None
    except (json.JSONDecodeError, ConfigError) as error:
        raise RunError(f"{path}: {error}") from None
