"""The student that a pruned run starts from: cut once, kept in the run folder, and read back when the run goes on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attar.distill.config import TrainConfig
from attar.distill.data import DataSet
from attar.distill.evaluate import Network
from attar.distill.models import RunModels, params_fingerprint
from attar.distill.pruning import Pruned, calibration_batches, prune
from attar.distill.run_folder import RunError
from attar.engine.checkpoint import PROVENANCE, load_params, save_model
from attar.engine.safetensors_files import read_json

INITIAL = "initial"


def pruned_student(
    config: TrainConfig, run_dir: Path, models: RunModels, data: DataSet, note: Callable[[str], None]
) -> RunModels:
    """The models with the student cut from the teacher as the configuration asks; unchanged where it asks for none.

    The choice is made once: a run that goes on reads what it began with, so that another machine's rounding in the
    calibration cannot change the student under a checkpoint.

    Args:
      note: Hears what was kept.

    Raises:
      RunError: If the teacher cannot be cut to the sizes.
      CheckpointError: If the student cannot be written or read back.
    """
    target = config.student_prune
    if target is None:
        return models
    folder, made = run_dir / INITIAL, _description(config, models, data)
    kept = _kept_layers(folder, made)
    if kept is None:
        pruned = _cut(config, models, data)
        kept = list(pruned.layers)
        save_model(folder, pruned.config, pruned.params, models.tokenizer_source, {"pruned": made, "layers": kept})
        student = Network(pruned.params, pruned.config)
    else:
        shape, params = load_params(folder)
        student = Network(params, shape)
    note(_spell(student, models, kept))
    return dataclasses.replace(models, student=student)


def _cut(config: TrainConfig, models: RunModels, data: DataSet) -> Pruned:
    assert config.student_prune is not None
    batches = calibration_batches(data.examples, config.calibration_examples, config.seed)
    try:
        return prune(models.student.config, models.student.params, config.student_prune, batches)
    except ValueError as error:
        raise RunError(f"student_prune: {error}") from None


def _description(config: TrainConfig, models: RunModels, data: DataSet) -> dict[str, Any]:
    """What the choice depends on."""
    assert config.student_prune is not None
    return {
        "target": dataclasses.asdict(config.student_prune),
        "calibration_examples": config.calibration_examples,
        "seed": config.seed,
        "data_sha256": data.sha256,
        "teacher_fingerprint": params_fingerprint(models.student.params),
    }


def _kept_layers(folder: Path, made: dict[str, Any]) -> list[int] | None:
    """The layers of a student that was cut before from the same; None where there is none."""
    if not (folder / PROVENANCE).is_file():
        return None
    provenance = read_json(folder / PROVENANCE)
    same = provenance.get("pruned") == json.loads(json.dumps(made))
    return list(provenance["layers"]) if same else None


def _spell(student: Network, models: RunModels, layers: list[int]) -> str:
    shape, teacher = student.config, models.student.config
    sizes = (
        f"hidden {shape.hidden_size}, intermediate {shape.intermediate_size}, heads {shape.num_attention_heads}, "
        f"KV heads {shape.num_key_value_heads}"
    )
    share = shape.num_parameters / teacher.num_parameters
    return (
        f"student: {shape.num_parameters / 1e6:.1f}M weights, {share:.0%} of the teacher's; {sizes}; "
        f"layers {_ranges(layers)} of {teacher.num_hidden_layers}"
    )


def _ranges(numbers: list[int]) -> str:
    """0-3, 7, 9-11."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
