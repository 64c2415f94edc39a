"""Checkpoint folders: round trips, shards and dtypes, and one clear line for each way in which they can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from attar.engine.checkpoint import (
    CheckpointError,
    load_config,
    load_params,
    params_from_tensors,
    read_tensors,
    save_model,
    tensors_from_params,
)
from attar.engine.config import ModelConfig
from attar.engine.gguf_names import hf_shapes
from attar.engine.presets import PRESETS
from attar.engine.transformer import Params, param_shapes

FAMILIES = ["tiny-gemma2", "tiny-gemma3", "tiny-llama"]
WEIGHTS = "model.safetensors"


def random_params(config: ModelConfig) -> Params:
    """Random weights by numpy, which has nothing to compile."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.random(s.shape, np.float32)), param_shapes(config))  # type: ignore[no-any-return]  # a tree of Params' structure


def tiny(name: str = "tiny-llama") -> tuple[ModelConfig, Params]:
    config = PRESETS[name]
    return config, random_params(config)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config, params = tiny()
    save_model(tmp_path / "model", config, params, provenance={"method": "test", "seed": 0})
    return tmp_path / "model"


def same(a: Params, b: Params) -> bool:
    return bool(jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()) and x.dtype == y.dtype, a, b)))


@pytest.mark.parametrize("name", FAMILIES)
def test_round_trip(name: str, tmp_path: Path) -> None:
    config, params = tiny(name)
    save_model(tmp_path / "model", config, params)
    loaded, again = load_params(tmp_path / "model")
    assert loaded == config
    assert same(again, params)


@pytest.mark.parametrize("name", FAMILIES)
def test_untied_head_and_names(name: str) -> None:
    config = PRESETS[name].replace(tie_word_embeddings=False)
    tensors = tensors_from_params(config, random_params(config))
    assert {key: value.shape for key, value in tensors.items()} == hf_shapes(config)
    assert same(params_from_tensors(config, tensors), random_params(config))


def test_provenance_and_generation_config_are_written(folder: Path) -> None:
    assert json.loads((folder / "attar.json").read_text()) == {"method": "test", "seed": 0}
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]  # no staging folder is left


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_as_float32(folder: Path, dtype: type) -> None:
    narrow = {name: tensor.astype(dtype) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(narrow, folder / WEIGHTS)
    tensors = read_tensors(folder)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    name = "model.layers.3.mlp.up_proj.weight"
    np.testing.assert_array_equal(tensors[name], narrow[name].astype(np.float32))
    _, params = load_params(folder, jnp.bfloat16)
    assert params["norm"].dtype == jnp.bfloat16


def test_shards_named_by_an_index(folder: Path) -> None:
    _, whole = load_params(folder)
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    files = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (folder / WEIGHTS).unlink()
    assert same(load_params(folder)[1], whole)
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json: names 'part-1\.safetensors', which is not a file"):
        load_params(folder)


def test_end_tokens_of_both_configs_count(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert load_config(folder).eos_token_ids == (2, 7)


def test_tied_head_stored_twice_is_ignored(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    _, params = load_params(folder)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].copy()}, folder / WEIGHTS)
    assert same(load_params(folder)[1], params)


def edit_tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:  # type: ignore[type-arg]  # arrays of any dtype
    def edit(folder: Path) -> None:
        tensors = dict(load_file(folder / WEIGHTS))
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return edit


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


Q0 = "model.layers.0.self_attn.q_proj.weight"
BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (truncate, r"model\.safetensors: not a whole safetensors file: .*fetch or write it again"),
    (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 64), r"model\.safetensors: not a whole safetensors file"),
    (lambda f: (f / WEIGHTS).write_bytes(b""), r"model\.safetensors: not a whole safetensors file"),
    (lambda f: (f / WEIGHTS).unlink(), r"model: holds neither model\.safetensors nor"),
    (lambda f: (f / "config.json").unlink(), r"config\.json: no such file"),
    (lambda f: (f / "config.json").write_text("{"), r"config\.json: cannot be read as JSON"),
    (lambda f: (f / "config.json").write_text("[]"), r"config\.json: must hold a JSON object, got list"),
    (edit_config(model_type="gpt_neox"), r"config\.json: model_type must be one of .* got 'gpt_neox'"),
    (edit_config(hidden_size="wide"), r"config\.json: config holds a value of the wrong type"),
    (edit_config(partial_rotary_factor=0.5), r"config\.json: config has keys .*: partial_rotary_factor"),
    (edit_config(intermediate_size=256), r"mlp\.\w+\.weight' must be \[.*256.*\] by the config, got \[.*128.*\];"),
    (edit_tensors(lambda t: t.pop(Q0)), r"lacks 1 tensor \(model\.layers\.0\.self_attn\.q_proj\.weight\)"),
    (edit_tensors(lambda t: t.update(extra=np.zeros(2, np.float32))), r"holds 1 tensor \(extra\) that llama does not"),
    (
        edit_tensors(lambda t: t.update({Q0: np.zeros((64, 64), np.int8)})),
        rf"tensor '{Q0}' must be F32, F16 or BF16, got I8",
    ),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN)
def test_broken_folders_are_named(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_params(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sources_that_are_no_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: does not exist; give a Hugging Face model folder or a \.gguf"):
        load_params(tmp_path / "nowhere")
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"weights\.bin: is not a \.gguf file"):
        load_params(tmp_path / "weights.bin")


def test_own_folder_is_replaced_whole(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")  # attar's kind of file, from the earlier model
    config, params = tiny("tiny-gemma2")
    save_model(folder, config, params)
    assert load_config(folder) == config
    assert not (folder / "tokenizer.json").exists()


def test_foreign_folders_and_files_are_left_alone(folder: Path) -> None:
    config, params = tiny()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"was not written by attar alone \(it contains 'notes\.txt'\)"):
        save_model(folder, config, params)
    (folder / "notes.txt").unlink()
    (folder / "attar.json").unlink()  # now it looks like a downloaded teacher
    with pytest.raises(CheckpointError, match=r"it has no attar\.json"):
        save_model(folder, config, params)
    assert load_config(folder) == config
    file = folder.parent / "file"
    file.write_text("mine")
    with pytest.raises(CheckpointError, match="is a file"):
        save_model(file, config, params)
    assert file.read_text() == "mine"


def test_failed_save_leaves_the_earlier_model(folder: Path) -> None:
    before = (folder / WEIGHTS).read_bytes()
    config, params = tiny("tiny-gemma2")
    incomplete = {**params, "layers": dict(params["layers"])}
    del incomplete["norm"]
    with pytest.raises(KeyError):
        save_model(folder, config, incomplete)
    assert (folder / WEIGHTS).read_bytes() == before
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]


def test_tokenizer_files_are_copied(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "tokenizer_config.json").write_text("{}")
    config, params = tiny()
    save_model(tmp_path / "student", config, params, tokenizer_source=folder)
    assert (tmp_path / "student" / "tokenizer.json").read_text() == '{"a": 1}'
    assert (tmp_path / "student" / "tokenizer_config.json").exists()
