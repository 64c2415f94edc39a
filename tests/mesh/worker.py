"""Trains, samples, scores, saves and loads on one mesh or another; a process of its own, as it needs eight devices.

python worker.py FOLDER MESH...      MESH is "one" or as `--mesh` takes it; results go to FOLDER/MESH.npz
"""

import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np
import optax  # type: ignore[import-untyped]  # ships neither stubs nor py.typed

from attar.distill.batches import Batch
from attar.distill.checkpointing import list_checkpoints, load_checkpoint, save_checkpoint
from attar.distill.methods.gkd import Gkd
from attar.distill.plan import PlannedRun, model_bytes
from attar.distill.rollout import sample_batch
from attar.distill.step import OptimizerConfig, TrainState, init_state, make_optimizer, make_train_step
from attar.distill.token_scores import score_examples
from attar.engine.checkpoint import load_params, save_model
from attar.engine.presets import PRESETS
from attar.engine.sampling import SamplingParams
from attar.engine.sharding import MeshShape, mesh_shape, on_mesh, place_rows, to_host, weight_shardings
from attar.engine.transformer import Params, init_params

STUDENT = PRESETS["tiny-gemma2"].replace(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    layer_types=("sliding_attention", "full_attention"),
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=4,
    vocab_size=256,
)
# Another width, a head of its own, and too few heads for eight devices: what a tensor axis does not divide is copied.
TEACHER = STUDENT.replace(hidden_size=40, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
ROWS, PROMPT, COMPLETION = 16, 8, 6
ALL_AXES = "data=2,fsdp=2,tensor=2"
ADAM = OptimizerConfig(learning_rate=1e-3, steps=10, weight_decay=0.1)


def models(folder: Path) -> tuple[Params, Params]:
    """Student and teacher, read from their folders onto the mesh in force."""
    for name, config in (("student", STUDENT), ("teacher", TEACHER)):
        if not (folder / name).exists():
            params = init_params(config, jax.random.key(len(name)))
            save_model(folder / name, config, jax.tree.map(lambda leaf: leaf * 4.0 if leaf.ndim > 2 else leaf, params))
    return load_params(folder / "student")[1], load_params(folder / "teacher")[1]


def batch() -> Batch:
    """Rows of all lengths, an empty completion among them."""
    rng = np.random.default_rng(0)
    prompts, completions = (rng.integers(3, 250, (ROWS, n), np.int32) for n in (PROMPT, COMPLETION))
    lengths = [rng.integers(low, n + 1, ROWS).astype(np.int32) for low, n in ((1, PROMPT), (0, COMPLETION))]
    return Batch(prompts, lengths[0], completions, lengths[1])


def flat(prefix: str, tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {prefix + jax.tree_util.keystr(path, simple=True, separator="."): to_host(leaf) for path, leaf in leaves}


def begin(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    start = partial(init_state, optimizer=optimizer)
    shardings = weight_shardings(jax.eval_shape(start, params), STUDENT)
    return start(params) if shardings is None else jax.jit(start, out_shardings=shardings)(params)


def gradients(student: Params, teacher: Params, accumulation_steps: int, remat: bool) -> dict[str, Any]:
    """A step of plain descent at rate 1, so that the weights after it show the gradient."""
    descent = optax.sgd(1.0)
    step = make_train_step(
        STUDENT, TEACHER, Gkd(), descent, accumulation_steps=accumulation_steps, remat=remat, normalization="token"
    )
    state, metrics = step(begin(student, descent), teacher, place_rows(batch()))
    return {**flat("", metrics._asdict()), **flat("weights.", state.params)}


def adam(student: Params, teacher: Params, folder: Path) -> dict[str, Any]:
    """Three steps of the real optimizer on the student's own samples; then through a checkpoint."""
    optimizer = make_optimizer(ADAM)
    step = make_train_step(STUDENT, TEACHER, Gkd(), optimizer)
    sample = partial(sample_batch, max_new_tokens=COMPLETION, sampling=SamplingParams(), eos_token_ids=(1,))
    state, losses, drawn = begin(student, optimizer), [], []
    for i in range(3):
        answers = place_rows(sample(state.params, STUDENT, batch(), key=jax.random.key(i)))
        drawn.append(to_host(answers.completions))
        state, metrics = step(state, teacher, answers)
        losses.append(float(metrics.loss))
    save_checkpoint(folder / "checkpoints", state, (0, 3), keep=1)
    loaded = read_back(folder, state)
    programs = step._cache_size()  # type: ignore[attr-defined]  # of a jitted function
    return {
        "losses": losses,
        "drawn": np.array(drawn),
        "programs": programs,
        "optimizer_bytes": held_bytes((loaded.optimizer_state, loaded.step)),
        **flat("state.", loaded),
    }


def held_bytes(tree: Any) -> int:
    """Bytes of the first device's parts."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def read_back(folder: Path, like: TrainState) -> TrainState:
    shardings = weight_shardings(like, STUDENT)
    return load_checkpoint(list_checkpoints(folder / "checkpoints")[-1], like, shardings)


def scores(student: Params, teacher: Params) -> dict[str, Any]:
    result = score_examples((student, STUDENT), (teacher, TEACHER), [(batch(), list(range(ROWS)))], ROWS)
    return {f"sum.{name}": values for name, values in result.sums.items()}


def run(folder: Path, mesh: str) -> None:
    """What is asked of every mesh; what costs further programs, of one device and the mesh of all axes alone."""
    thorough = mesh in ("one", ALL_AXES)
    with on_mesh(None if mesh == "one" else MeshShape.parse(mesh)):
        student, teacher = models(folder)
        results = {f"bytes.{name}": leaf.addressable_shards[0].data.nbytes for name, leaf in student["layers"].items()}
        planned = model_bytes(PlannedRun(STUDENT, TEACHER, mesh_shape(), ROWS, PROMPT, compute_dtype="float32"))
        results |= {f"planned.{name}": count for name, count in asdict(planned).items()}
        results |= {"held.weights": held_bytes(student), "held.teacher": held_bytes(teacher)}
        results |= {f"parts.{k}": v for k, v in gradients(student, teacher, 2, True).items()}
        if thorough:
            results |= {f"plain.{k}": v for k, v in gradients(student, teacher, 1, False).items()}
            results |= {f"adam.{k}": v for k, v in adam(student, teacher, folder / mesh).items()}
            results |= scores(student, teacher)
        else:  # the checkpoint of the mesh of all axes
            like = jax.eval_shape(partial(init_state, optimizer=make_optimizer(ADAM)), student)
            results |= flat("resharded.", read_back(folder / ALL_AXES, like))
    np.savez(folder / f"{mesh}.npz", **results)


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    for name in sys.argv[2:]:
        run(Path(sys.argv[1]), name)
