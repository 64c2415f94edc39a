"""Students cut from a teacher: nothing lost where nothing counts, and what counts is found."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from attar.distill.batches import Batch
from attar.distill.config import TrainConfig
from attar.distill.divergences import forward_kl
from attar.distill.importance import CalibrationRows, measure_importance, measure_influence, measure_norm_ratios
from attar.distill.methods.sft import Sft
from attar.distill.pruning import Pruned, PruneTarget, calibration_batches, choose_layers, largest, prune, pruned_shape
from attar.distill.run_folder import RunError
from attar.distill.step import OptimizerConfig, init_state, make_optimizer, make_train_step
from attar.distill.trainer import train
from attar.engine.checkpoint import load_config, load_params, read_tensors
from attar.engine.config import ModelConfig
from attar.engine.presets import PRESETS
from attar.engine.surgery import take_layers
from attar.engine.transformer import Params, forward, init_params
from attar.engine.width_surgery import keep_channels, keep_heads, keep_neurons

FAMILIES = {
    "llama": PRESETS["tiny-llama"].replace(num_hidden_layers=3, layer_types=("full_attention",) * 3),
    "llama-untied": PRESETS["tiny-llama"].replace(
        num_hidden_layers=3, layer_types=("full_attention",) * 3, tie_word_embeddings=False
    ),
    "gemma2": PRESETS["tiny-gemma2"].replace(
        num_hidden_layers=3, layer_types=("sliding_attention", "full_attention", "sliding_attention")
    ),
    "gemma3": PRESETS["tiny-gemma3"].replace(
        num_hidden_layers=3,
        layer_types=("sliding_attention", "full_attention", "sliding_attention"),
        num_key_value_heads=2,
    ),
}
# What lives of the planted teachers: D 64, F 128, N 4, K 2, L 3.
CHANNELS = np.sort(np.random.default_rng(5).permutation(64)[:40])
NEURONS = np.sort(np.random.default_rng(6).permutation(128)[:96])
KV_HEADS, LAYERS = (1, 0, 1), (0, 2)
TARGET = PruneTarget(2, 40, 96, None, 1)


def grown(config: ModelConfig, seed: int = 0) -> Params:
    """Weights large enough that every part moves the logits, norms that are not neutral."""
    rng = np.random.default_rng(seed)
    neutral = 0.0 if config.norm_plus_one else 1.0

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        if "norm" in path[-1].key:
            return jnp.asarray(neutral + rng.normal(0, 0.2, leaf.shape).astype(np.float32))
        return jnp.asarray(rng.normal(0, 0.2, leaf.shape).astype(np.float32))

    return jax.tree_util.tree_map_with_path(one, init_params(config, jax.random.key(0)))  # type: ignore[no-any-return]  # a tree of Params' structure


def planted(config: ModelConfig) -> Params:
    """A teacher of which everything outside CHANNELS, NEURONS, KV_HEADS and LAYERS does nothing."""
    params = jax.tree.map(np.array, grown(config))
    dead_channels = np.setdiff1d(np.arange(64), CHANNELS)
    dead_neurons = np.setdiff1d(np.arange(128), NEURONS)
    layers = params["layers"]
    params["embed_tokens"][:, dead_channels] = 0
    layers["o_proj"][:, dead_channels] = 0
    layers["down_proj"][:, dead_channels] = 0
    layers["gate_proj"][:, dead_neurons[::2]] = 0  # never active
    layers["down_proj"][:, :, dead_neurons[1::2]] = 0  # active, and nothing reads it
    heads = layers["o_proj"].reshape(3, 64, 2, 2 * config.head_dim)  # [L, D, K, G H]
    for layer, alive in enumerate(KV_HEADS):
        heads[layer, :, 1 - alive] = 0
    layers["o_proj"][1], layers["down_proj"][1] = 0, 0
    return jax.tree.map(jnp.asarray, params)  # type: ignore[no-any-return]  # a tree of Params' structure


def calibration(config: ModelConfig, seed: int = 0) -> list[CalibrationRows]:
    """Two batches of random text, the second with padding."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, config.vocab_size, (2, 4, 12), np.int32)
    real = np.ones((2, 4, 12), np.bool_)
    real[1, :2, 7:] = False
    return list(zip(tokens, real, strict=True))


logits = jax.jit(forward, static_argnums=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_cutting_what_does_nothing_changes_nothing(family: str) -> None:
    config = FAMILIES[family]
    teacher = planted(config)
    tokens = np.random.default_rng(1).integers(3, config.vocab_size, (2, 20), np.int32)
    cut = prune(config, teacher, TARGET, calibration(config))
    assert cut.layers == LAYERS
    assert cut.config.layer_types == tuple(config.layer_types[i] for i in LAYERS)
    assert (cut.config.hidden_size, cut.config.intermediate_size) == (40, 96)
    assert (cut.config.num_attention_heads, cut.config.num_key_value_heads) == (2, 1)
    expected = np.asarray(logits(teacher, config, tokens))
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(logits(cut.params, cut.config, tokens), expected, atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_importance_finds_what_was_planted(family: str) -> None:
    config = FAMILIES[family]
    shallower, params = take_layers(config, planted(config), LAYERS)
    scores = measure_importance(params, shallower, calibration(config))
    np.testing.assert_array_equal(largest(scores.channels, 40), CHANNELS)
    np.testing.assert_array_equal(largest(scores.neurons, 96), np.tile(NEURONS, (2, 1)))
    per_group = scores.heads.reshape(2, 2, 2).sum(-1)
    np.testing.assert_array_equal(per_group.argmax(-1), [KV_HEADS[i] for i in LAYERS])
    np.testing.assert_allclose(per_group.min(-1), 0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_keeping_everything_is_the_teacher_itself(family: str) -> None:
    config = FAMILIES[family]
    teacher = grown(config)
    cut = prune(config, teacher, PruneTarget(num_hidden_layers=3, hidden_size=64), calibration(config))
    assert (cut.config, cut.layers) == (config, (0, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, cut.params, teacher)


def test_scores_are_those_of_a_float64_computation() -> None:
    """Influence of the first layer and its neurons and heads, by the definitions, on one row."""
    config = FAMILIES["llama"]
    params = grown(config)
    tokens = np.random.default_rng(2).integers(3, 512, (1, 9), np.int32)
    rows = [(tokens, np.ones((1, 9), np.bool_))]
    scores = measure_importance(params, config, rows)
    layer = {name: np.asarray(stacked[0], np.float64) for name, stacked in params["layers"].items()}
    x = np.asarray(params["embed_tokens"], np.float64)[tokens[0]]
    attended, heads = _attention(config, layer, _norm(config, x, layer["input_layernorm"]))
    middle = x + attended
    read = _norm(config, middle, layer["post_attention_layernorm"])
    gate = read @ layer["gate_proj"].T
    neurons = gate / (1 + np.exp(-gate)) * (read @ layer["up_proj"].T)
    after = middle + neurons @ layer["down_proj"].T
    cosine = (x * after).sum(-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(after, axis=-1))
    influence = measure_influence(params, config, 1, rows)
    assert influence[0] == pytest.approx((1 - cosine).mean(), rel=1e-4)
    assert influence.shape == (3,)
    columns = np.linalg.norm(layer["down_proj"], axis=0)
    np.testing.assert_allclose(scores.neurons[0], np.abs(neurons).mean(0) * columns, rtol=1e-3)
    np.testing.assert_allclose(scores.heads[0], np.linalg.norm(heads, axis=-1).mean(0), rtol=1e-3)


def _norm(config: ModelConfig, x: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    scaled: NDArray[np.float64] = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * weight
    return scaled


def _attention(
    config: ModelConfig, layer: dict[str, NDArray[np.float64]], x: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Output of the branch [T, D], and what each head adds to it [T, N, D]."""
    T, H, N = len(x), config.head_dim, config.num_attention_heads
    angles = np.arange(T)[:, None] * config.rope_theta ** (-2 * np.arange(H // 2) / H)

    def rotate(v: NDArray[np.float64]) -> NDArray[np.float64]:
        a, b = v[..., : H // 2], v[..., H // 2 :]
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    q = rotate((x @ layer["q_proj"].T).reshape(T, N, H))
    k = rotate((x @ layer["k_proj"].T).reshape(T, -1, H))
    v = (x @ layer["v_proj"].T).reshape(T, -1, H)
    added = np.empty((T, N, config.hidden_size))
    for n in range(N):
        kv = n // config.num_query_groups
        scores = np.where(np.tri(T, dtype=bool), q[:, n] @ k[:, kv].T * config.query_scale, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        values = weights / weights.sum(-1, keepdims=True) @ v[:, kv]
        added[:, n] = values @ layer["o_proj"][:, n * H : (n + 1) * H].T
    return added.sum(1), added


class Trained(NamedTuple):
    config: ModelConfig
    params: Params
    held_out: NDArray[np.int32]


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A tiny teacher that has learnt text in which the next token follows from the last two."""
    config = FAMILIES["llama"].replace(vocab_size=64)
    rng = np.random.default_rng(0)
    table = rng.integers(0, 64, (8, 64))

    def text(rows: int) -> NDArray[np.int32]:
        tokens = rng.integers(0, 64, (rows, 24), np.int32)
        for t in range(2, 24):
            tokens[:, t] = table[tokens[:, t - 2] % 8, tokens[:, t - 1]]
        return tokens

    optimizer = make_optimizer(OptimizerConfig(1e-2, 150, warmup_steps=10))
    step = make_train_step(config, None, Sft(), optimizer)
    state = init_state(init_params(config, jax.random.key(1)), optimizer)
    lengths = np.full(32, 2, np.int32)
    loss = np.inf
    for _ in range(150):
        rows = text(32)
        state, metrics = step(state, None, Batch(rows[:, :2], lengths, rows[:, 2:], np.full(32, 22, np.int32)))
        loss = float(metrics.loss)
    assert loss < 2.0  # 4.16 at first
    return Trained(config, state.params, text(16))


def test_importance_beats_chance(trained: Trained) -> None:
    config, params, held_out = trained
    rows = [(held_out, np.ones(held_out.shape, np.bool_))]
    reference = logits(params, config, held_out)

    def divergence(shape: ModelConfig, weights: Params) -> float:
        return float(jnp.mean(forward_kl(logits(weights, shape, held_out), reference)))

    def by_chance(seed: int) -> float:
        rng = np.random.default_rng(seed)
        channels = np.sort(rng.permutation(64)[:48])
        shape, cut = keep_channels(config, params, channels, *measure_norm_ratios(params, config, channels, rows))
        shape, cut = keep_neurons(shape, cut, np.sort(rng.permuted(np.tile(np.arange(128), (3, 1)), axis=1)[:, :96]))
        kv_heads = rng.integers(0, 2, (3, 1))
        return divergence(*keep_heads(shape, cut, kv_heads, kv_heads[..., None] * 2 + np.arange(2)))

    cut = prune(config, params, PruneTarget(None, 48, 96, None, 1), rows)
    chance = [by_chance(seed) for seed in range(5)]
    assert divergence(cut.config, cut.params) < 0.8 * np.mean(chance)
    assert divergence(cut.config, cut.params) < min(chance)


def prune_config(teacher: Path, data: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "data": str(data), "teacher": str(teacher), "student_prune": PruneTarget(1, 16, 32), "max_new_tokens": 8,
        "batch_size": 4, "prompt_buckets": 1, "steps": 2, "checkpoint_every": 1, "calibration_examples": 3,
    }  # fmt: skip
    return TrainConfig(**settings | changes)


class Notes:
    """Keeps what a run notes; stops it before the second step where it is told to."""

    def __init__(self, stop: bool = False) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []
        self._stop = stop

    def on_stage(self, stage: str) -> None:
        self.stages.append(stage)

    def on_note(self, note: str) -> None:
        self.notes.append(note)

    def on_step(self, report: Any) -> None:
        if self._stop:
            raise KeyboardInterrupt

    def on_evaluation(self, step: int, evaluation: Any) -> None: ...


def test_a_pruned_run_keeps_its_first_student_and_goes_on(
    tmp_path: Path, teacher_folder: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, notes = prune_config(teacher_folder, data_file, steps=2), Notes(stop=True)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, notes)
    assert notes.notes[0].startswith("student: ")
    assert "hidden 16, intermediate 32" in notes.notes[0]
    initial = read_tensors(tmp_path / "initial")
    made = json.loads((tmp_path / "initial" / "attar.json").read_text())
    assert made["pruned"]["target"]["num_hidden_layers"] == 1

    def never(*_: Any) -> Pruned:
        raise AssertionError("the student was cut again")

    monkeypatch.setattr("attar.distill.initial_student.prune", never)
    result = train(config, tmp_path)
    assert all(np.array_equal(tensor, initial[name]) for name, tensor in read_tensors(tmp_path / "initial").items())
    shape, _ = load_params(result.student)
    assert (shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size) == (1, 16, 32)
    assert shape.head_dim == load_config(teacher_folder).head_dim
    monkeypatch.undo()
    with pytest.raises(RunError, match="calibration_examples was 3, is 4"):
        train(prune_config(teacher_folder, data_file, calibration_examples=4), tmp_path)


def test_the_configuration_survives_json(teacher_folder: Path, data_file: Path) -> None:
    config = prune_config(teacher_folder, data_file)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (PruneTarget(hidden_size=65), "hidden_size must lie between 1 and the teacher's 64, got 65"),
        (PruneTarget(num_hidden_layers=0), "num_hidden_layers must lie between 1"),
        (PruneTarget(num_attention_heads=3), "num_attention_heads must be a multiple of the 2 KV heads"),
        (PruneTarget(num_attention_heads=4, num_key_value_heads=1), "at most 2 for each, got 4"),
    ],
)
def test_sizes_that_a_teacher_does_not_have(target: PruneTarget, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pruned_shape(FAMILIES["llama"], target)


def test_the_layers_taken_out_change_the_stream_least_together() -> None:
    """Layer 2 takes back what layer 1 wrote: each changes the stream much, both together hardly."""
    config = FAMILIES["llama"].replace(num_hidden_layers=4, layer_types=("full_attention",) * 4)
    params = jax.tree.map(np.array, grown(config))
    layers = params["layers"]
    layers["o_proj"][:] = 0  # only the MLPs write
    layers["down_proj"] *= np.array([0.005, 0.03, 1.0, 0.005], np.float32)[:, None, None]
    for name in ("gate_proj", "up_proj"):
        layers[name][1, :, 32:] = 0  # layer 1 reads the first half of the channels and writes the second
        layers[name][2] = layers[name][1]
    layers["post_attention_layernorm"][2] = layers["post_attention_layernorm"][1]
    layers["down_proj"][1, :32] = 0
    layers["down_proj"][2] = -layers["down_proj"][1]
    rows = calibration(config)
    alone = measure_influence(params, config, 1, rows)
    assert max(alone[[0, 3]]) < min(alone[[1, 2]])
    assert choose_layers(config, params, 2, rows) == (0, 3)


def test_query_heads_of_a_group_are_chosen_among_its_own() -> None:
    config = FAMILIES["llama"]
    params = jax.tree.map(np.array, grown(config))
    params["layers"]["o_proj"].reshape(3, 64, 4, 16)[:, :, [0, 3]] = 0  # heads 0 (of group 0) and 3 (of group 1)
    tokens = np.random.default_rng(3).integers(3, 512, (2, 12), np.int32)
    cut = prune(config, params, PruneTarget(num_attention_heads=2), calibration(config))
    assert (cut.config.num_attention_heads, cut.config.num_key_value_heads) == (2, 2)
    np.testing.assert_allclose(logits(cut.params, cut.config, tokens), logits(params, config, tokens), atol=2e-4)


def test_calibration_text_is_drawn_by_the_seed(tokenizer: Any, data_file: Path) -> None:
    from attar.distill.data import Limits, load_examples

    examples = load_examples(data_file, tokenizer, Limits(40, 8), "plain").examples
    first, again, other = (calibration_batches(examples, 3, seed) for seed in (0, 0, 1))
    assert sum(len(tokens) for tokens, _ in first) == 3
    np.testing.assert_array_equal(first[0][0], again[0][0])
    assert first[0][0].shape != other[0][0].shape or not np.array_equal(first[0][0], other[0][0])
    lengths = sorted(len(e.prompt) + len(e.completion) for e in examples)
    assert all(count in lengths for count in first[0][1].sum(1))
