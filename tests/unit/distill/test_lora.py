"""Low-rank adapters: their gradient, what stays frozen, and their files."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from attar.cli import main
from attar.distill.adapters import load_adapter, save_adapter
from attar.distill.batches import pad_batch
from attar.distill.config import TrainConfig
from attar.distill.data import Example
from attar.distill.lora import LORA_TARGETS, Lora
from attar.distill.methods.gkd import Gkd
from attar.distill.run_folder import RunError
from attar.distill.step import OptimizerConfig, init_state, make_optimizer, make_train_step
from attar.distill.trainer import train
from attar.engine.checkpoint import CheckpointError, load_model, load_params, params_from_tensors, read_tensors
from attar.engine.config import ModelConfig
from attar.engine.transformer import Params, init_params

LORA = Lora(rank=3, alpha=6.0, targets=("q_proj", "down_proj"))


def trained_adapter(weights: Params, lora: Lora = LORA) -> Params:
    """An adapter whose B is no longer zero."""
    adapter = lora.split(weights, jax.random.key(1)).trained
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), adapter)  # type: ignore[no-any-return]  # a tree of Params' structure


def test_training_starts_from_the_weights_themselves(shape: ModelConfig) -> None:
    weights = init_params(shape, jax.random.key(0))
    trained, frozen = LORA.split(weights, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, LORA.effective(trained, frozen), weights)
    assert set(trained["layers"]) == {"q_proj", "down_proj"}
    assert trained["layers"]["down_proj"]["lora_A"].shape == (2, 3, 48)
    assert np.abs(trained["layers"]["down_proj"]["lora_A"]).max() <= 48**-0.5


@pytest.mark.parametrize(("stabilized", "scale"), [(False, 2.0), (True, 6.0 / 3**0.5)])
def test_gradient_of_the_merged_weights_is_that_of_the_low_rank_product(
    shape: ModelConfig, stabilized: bool, scale: float
) -> None:
    """y = x W^T + scale (x A^T) B^T, by hand in float64, against the gradient through the merged W."""
    lora = Lora(3, 6.0, ("q_proj",), stabilized)
    weights = init_params(shape, jax.random.key(0))
    trained = trained_adapter(weights, lora)
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(2, 5, 32)), rng.normal(size=(2, 5, 32))

    def loss(adapter: Params) -> jax.Array:
        merged = lora.effective(adapter, weights)["layers"]["q_proj"]
        y = jnp.einsum("lti,loi->lto", jnp.asarray(x, jnp.float32), merged)
        return 0.5 * jnp.sum((y - jnp.asarray(target, jnp.float32)) ** 2)

    actual = jax.grad(loss)(trained)["layers"]["q_proj"]
    w = np.asarray(weights["layers"]["q_proj"], np.float64)
    a, b = (np.asarray(trained["layers"]["q_proj"][f"lora_{part}"], np.float64) for part in "AB")
    inner = np.einsum("lti,lri->ltr", x, a)
    error = np.einsum("lti,loi->lto", x, w) + scale * np.einsum("ltr,lor->lto", inner, b) - target
    expected_b = scale * np.einsum("lto,ltr->lor", error, inner)
    expected_a = scale * np.einsum("lto,lor,lti->lri", error, b, x)
    np.testing.assert_allclose(actual["lora_A"], expected_a, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(actual["lora_B"], expected_b, rtol=1e-4, atol=1e-4)


def test_a_step_computes_no_gradient_of_frozen_weights(shape: ModelConfig) -> None:
    """A step on one target does fewer operations than one on the weights, and keeps state for the adapter alone."""
    wide = shape.replace(intermediate_size=1024)
    weights = init_params(wide, jax.random.key(0))
    rows = [Example(i, np.arange(3, 8, dtype=np.int32), np.arange(4, dtype=np.int32), "", "") for i in range(2)]
    batch, optimizer = pad_batch(rows, 8, 4, 0), make_optimizer(OptimizerConfig(1e-3, 10))
    operations = {}
    for name, parametrization in (("weights", None), ("adapter", Lora(2, 2.0, ("q_proj",)))):
        options: dict[str, Any] = {} if parametrization is None else {"parametrization": parametrization}
        trained, frozen = (
            (weights, None) if parametrization is None else parametrization.split(weights, jax.random.key(0))
        )
        step: Any = make_train_step(wide, wide, Gkd(beta=0.3), optimizer, **options)
        state = init_state(trained, optimizer)
        lowered = step.lower(state, weights, batch, frozen).compile()
        operations[name] = lowered.cost_analysis()["flops"]
        if parametrization is not None:
            assert max(leaf.size for leaf in jax.tree.leaves(state)) <= 2 * 2 * 64
    assert operations["adapter"] < 0.85 * operations["weights"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path, data_file: Path) -> Path:
    """A run of six steps that trained an adapter on half of the teacher's layers."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(adapter_config(teacher_folder, data_file), folder)
    return folder


def adapter_config(teacher: Path, data: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "data": str(data), "teacher": str(teacher), "student_layers": (0,), "max_new_tokens": 8, "batch_size": 4,
        "prompt_buckets": 1, "steps": 6, "learning_rate": 1e-2, "checkpoint_every": 3,
        "lora_rank": 4, "lora_alpha": 8.0,
    }  # fmt: skip
    return TrainConfig(**settings | changes)


def test_the_base_is_the_same_to_the_bit(run: Path, teacher_folder: Path) -> None:
    teacher, initial = read_tensors(teacher_folder), read_tensors(run / "initial")
    assert all(np.array_equal(tensor, teacher[name]) for name, tensor in initial.items())
    student = read_tensors(run / "student")
    changed = {name.split(".")[-2] for name, tensor in student.items() if not np.array_equal(tensor, initial[name])}
    assert changed == set(LORA_TARGETS)
    newest = sorted((run / "checkpoints").iterdir())[-1]
    names = (newest / "state" / "_METADATA").read_text()  # orbax's, of every array
    assert "q_proj" in names
    assert "embed_tokens" not in names
    assert "norm" not in names


def test_merging_the_saved_adapter_gives_the_student(run: Path, tmp_path: Path) -> None:
    arguments = ["merge", str(run / "initial"), str(run / "adapter"), "--out", str(tmp_path / "merged")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "rank 4, scale 2" in result.output
    merged, student = read_tensors(tmp_path / "merged"), read_tensors(run / "student")
    assert all(np.array_equal(tensor, student[name]) for name, tensor in merged.items())
    assert load_model(tmp_path / "merged").tokenizer.vocab_size == 259


def test_an_adapter_run_resumes_to_the_same_weights(
    run: Path, tmp_path: Path, teacher_folder: Path, data_file: Path
) -> None:
    class Stop:
        def on_stage(self, stage: str) -> None: ...
        def on_note(self, note: str) -> None: ...
        def on_evaluation(self, step: int, evaluation: Any) -> None: ...
        def on_step(self, report: Any) -> None:
            if report.step == 4:
                raise KeyboardInterrupt

    config = adapter_config(teacher_folder, data_file)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, Stop())
    with pytest.raises(RunError, match=r"lora_rank was 4, is 5"):
        train(adapter_config(teacher_folder, data_file, lora_rank=5), tmp_path)
    train(config, tmp_path)
    whole, resumed = read_tensors(run / "student"), read_tensors(tmp_path / "student")
    assert all(np.array_equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_an_adapter_of_peft_reads_back_and_merges_by_its_equation(
    shape: ModelConfig, teacher_folder: Path, tmp_path: Path
) -> None:
    """W + alpha / sqrt(r) B A on one layer only, as PEFT writes it with layers_to_transform."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 32)).astype(np.float32), rng.normal(size=(16, 2)).astype(np.float32)
    place = "base_model.model.model.layers.1.self_attn.v_proj"
    save_file({f"{place}.lora_A.weight": a, f"{place}.lora_B.weight": b}, tmp_path / "adapter_model.safetensors")
    written = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "use_rslora": True, "target_modules": ["v_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(written | {"bias": "none", "use_dora": False}))
    lora, trained = load_adapter(tmp_path, shape)
    weights = load_params(teacher_folder)[1]
    merged = lora.saved(trained, weights)["layers"]["v_proj"]
    np.testing.assert_array_equal(merged[0], weights["layers"]["v_proj"][0])
    expected = np.asarray(weights["layers"]["v_proj"][1], np.float64) + 3 / 2**0.5 * b.astype(np.float64) @ a
    np.testing.assert_allclose(merged[1], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be 'LORA', got 'IA3'"),
        ({"use_dora": True}, "use_dora must be False: attar does not implement it"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save must be None"),
        ({"r": 7}, r"must have lora_A \[7, "),
        ({"r": None}, "is no LoRA configuration"),
    ],
)
def test_adapters_that_attar_cannot_merge(
    shape: ModelConfig, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    weights = init_params(shape, jax.random.key(0))
    save_adapter(tmp_path / "adapter", LORA, trained_adapter(weights), "base", {})
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        load_adapter(tmp_path / "adapter", shape)


def test_an_adapter_comes_back_from_its_files(shape: ModelConfig, tmp_path: Path) -> None:
    weights = init_params(shape, jax.random.key(0))
    trained = trained_adapter(weights)
    save_adapter(tmp_path / "adapter", LORA, trained, "base", {})
    lora, loaded = load_adapter(tmp_path / "adapter", shape)
    assert lora == LORA
    jax.tree.map(np.testing.assert_array_equal, loaded, trained)
    with pytest.raises(CheckpointError, match="belongs to another model"):
        load_adapter(tmp_path / "adapter", shape.replace(hidden_size=64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "lora_rank must be at least 1, got 0"),
        ({"alpha": 0.0}, "lora_alpha must be positive"),
        ({"targets": ("q_proj", "lm_head")}, "lora_targets must name projections among q_proj"),
        ({"targets": ()}, "got none"),
    ],
)
def test_adapters_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lora(**{"rank": 2, "alpha": 2.0} | settings)


@pytest.mark.reference
@pytest.mark.parametrize("stabilized", [False, True])
def test_peft_opens_the_adapter_and_merges_it_to_the_same_weights(
    shape: ModelConfig, teacher_folder: Path, tmp_path: Path, stabilized: bool
) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    lora = Lora(3, 6.0, LORA_TARGETS, stabilized)
    weights = load_params(teacher_folder)[1]
    trained = trained_adapter(weights, lora)
    save_adapter(tmp_path / "adapter", lora, trained, str(teacher_folder), {})
    base = transformers.AutoModelForCausalLM.from_pretrained(teacher_folder)
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    tensors = {name: tensor.numpy() for name, tensor in merged.state_dict().items() if name != "lm_head.weight"}
    theirs, ours = params_from_tensors(shape, tensors), lora.saved(trained, weights)
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, atol=2e-6), ours, theirs)
