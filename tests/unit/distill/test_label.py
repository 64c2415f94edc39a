"""Stored targets: what is kept of the teacher, folders gone on with, and training from them."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from attar.distill.config import TrainConfig
from attar.distill.data import Example, Limits, load_examples
from attar.distill.label import LabelConfig, label
from attar.distill.part_folder import PartError, open_parts
from attar.distill.run_folder import RunError, read_metrics
from attar.distill.stored_targets import DrawnTargets, TopTargets
from attar.distill.target_folder import TargetFolder
from attar.distill.trainer import train
from attar.engine.checkpoint import load_config, load_model, save_model
from attar.engine.transformer import forward, init_params

V = 259
LENGTHS = [4, 4, 6, 2, 3]  # of the completions, their end tokens counted


@pytest.fixture(scope="module")
def config(teacher_folder: Path, data_file: Path) -> LabelConfig:
    return LabelConfig(
        (str(data_file),), str(teacher_folder), tokens_per_position=7, max_new_tokens=8, batch_size=2, shard_examples=2
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, config: LabelConfig) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("targets")
    label(config, root / "top")
    label(replace(config, tokens_per_position=V), root / "whole")
    label(replace(config, kind="drawn", tokens_per_position=4000), root / "drawn")
    label(replace(config, kind="states"), root / "states")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def examples(teacher_folder: Path, data_file: Path) -> tuple[Example, ...]:
    return tuple(load_examples(data_file, load_model(teacher_folder).tokenizer, Limits(56, 8)).examples)


@pytest.fixture(scope="module")
def teacher_log_probs(teacher_folder: Path, examples: tuple[Example, ...]) -> list[np.ndarray[Any, Any]]:
    """[N, V] of each example, one at a time and without padding."""
    model = load_model(teacher_folder)
    found = []
    for example in examples:
        tokens = jnp.asarray(np.concatenate([example.prompt, example.completion])[None])
        logits = forward(model.params, model.config, tokens)[0, len(example.prompt) - 1 : -1]
        found.append(np.asarray(jax.nn.log_softmax(logits)))
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_likeliest_tokens_keep_their_probabilities(
    folders: dict[str, Path], teacher_log_probs: list[np.ndarray[Any, Any]]
) -> None:
    targets = TargetFolder(folders["top"]).rows([[i] for i in range(5)], 6)
    assert isinstance(targets, TopTargets)
    for row, log_probs in enumerate(teacher_log_probs):
        assert len(log_probs) == LENGTHS[row]
        best = np.sort(log_probs, axis=-1)[:, ::-1][:, :7]
        np.testing.assert_allclose(targets.log_probs[row, : len(best)], best, atol=1e-4)
        chosen = np.take_along_axis(log_probs, np.asarray(targets.tokens[row, : len(best)]), axis=-1)
        np.testing.assert_allclose(chosen, best, atol=1e-4)
        np.testing.assert_array_equal(targets.log_probs[row, len(best) :], 0.0)


def test_drawn_tokens_are_as_frequent_as_they_are_likely(
    folders: dict[str, Path], teacher_log_probs: list[np.ndarray[Any, Any]]
) -> None:
    targets = TargetFolder(folders["drawn"]).rows([[2], [0]], 6)
    assert isinstance(targets, DrawnTargets)
    for row, example in enumerate([2, 0]):
        for position, log_probs in enumerate(teacher_log_probs[example]):
            counts = np.bincount(targets.tokens[row, position], minlength=V)
            np.testing.assert_allclose(counts / 4000, np.exp(log_probs), atol=0.04)
    assert (np.asarray(targets.tokens)[0, 0] != np.asarray(targets.tokens)[1, 0]).any()


def test_rows_are_found_whatever_the_shards(folders: dict[str, Path], config: LabelConfig, tmp_path: Path) -> None:
    label(replace(config, shard_examples=100), tmp_path / "one")
    assert len(list((tmp_path / "one").glob("*.safetensors"))) == 1
    many, one = (TargetFolder(path).rows([[4], [1, 3]], 6) for path in (folders["top"], tmp_path / "one"))
    assert isinstance(many, TopTargets)
    assert isinstance(one, TopTargets)
    np.testing.assert_array_equal(many.tokens, one.tokens)


def test_small_vocabularies_are_stored_in_two_bytes(folders: dict[str, Path]) -> None:
    stored = load_file(folders["top"] / "shard_00000.safetensors")
    assert stored["tokens"].dtype == np.uint16
    assert stored["offsets"].tolist() == [0, 4, 8]


def test_a_folder_with_missing_shards_is_finished_to_the_same_bytes(
    folders: dict[str, Path], config: LabelConfig, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(folders["top"], again)
    (again / "shard_00001.safetensors").unlink()
    untouched = (again / "shard_00000.safetensors").stat().st_mtime_ns
    with pytest.raises(PartError, match=r"shard_00001.safetensors: must have \d+ bytes"):
        TargetFolder(again)
    label(config, again)
    assert contents(again) == contents(folders["top"])
    assert (again / "shard_00000.safetensors").stat().st_mtime_ns == untouched


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokens_per_position": 8}, "tokens_per_position was 7, is 8"),
        ({"kind": "drawn"}, "kind was 'top', is 'drawn'"),
        ({"temperature": 2.0}, "temperature was 1.0, is 2.0"),
        ({"max_new_tokens": 3}, "examples_sha256 was"),
    ],
)
def test_a_folder_begun_under_other_settings_is_refused(
    folders: dict[str, Path], config: LabelConfig, change: dict[str, Any], named: str
) -> None:
    before = contents(folders["top"])
    with pytest.raises(PartError, match=f"targets.json: was begun under other settings .*{named}"):
        label(replace(config, **change), folders["top"])
    assert contents(folders["top"]) == before


def test_folders_of_other_things_and_in_use_are_refused(tmp_path: Path, config: LabelConfig) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PartError, match=r"holds files but no targets.json"):
        label(config, tmp_path)
    with (
        open_parts(tmp_path / "new", "index.json", {}),
        pytest.raises(PartError, match="another process is at work here"),
        open_parts(tmp_path / "new", "index.json", {}),
    ):
        pass
    with pytest.raises(PartError, match=r"must be at most the vocabulary's 259, got 300"):
        label(replace(config, tokens_per_position=300), tmp_path / "large")


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    """Another model over the teacher's vocabulary."""
    shape = load_config(teacher_folder)
    folder = tmp_path_factory.mktemp("student") / "student"
    save_model(folder, shape, init_params(shape, jax.random.key(3)), teacher_folder, {})
    return folder


@pytest.fixture
def settings(student_folder: Path, data_file: Path) -> dict[str, Any]:
    return {
        "data": str(data_file),
        "method": "pretrain",
        "student": str(student_folder),
        "max_new_tokens": 8,
        "batch_size": 4,
        "prompt_buckets": 1,
        "steps": 3,
        "learning_rate": 1e-2,
        "checkpoint_every": 2,
    }


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train"]


def test_all_tokens_stored_train_as_the_teacher_at_hand_does(
    tmp_path: Path, settings: dict[str, Any], folders: dict[str, Path], teacher_folder: Path
) -> None:
    train(TrainConfig(**settings, targets=str(folders["whole"])), tmp_path / "stored")
    train(TrainConfig(**settings, teacher=str(teacher_folder)), tmp_path / "online")
    stored, online = losses(tmp_path / "stored"), losses(tmp_path / "online")
    np.testing.assert_allclose(stored, online, rtol=1e-4)
    assert online[2] < 0.95 * online[0]


def test_packed_rows_read_the_targets_of_each_of_their_examples(
    tmp_path: Path, settings: dict[str, Any], folders: dict[str, Path], teacher_folder: Path
) -> None:
    packed = settings | {"pack": True, "pack_tokens": 32, "batch_size": 2}
    train(TrainConfig(**packed, targets=str(folders["whole"])), tmp_path / "stored")
    train(TrainConfig(**packed, teacher=str(teacher_folder)), tmp_path / "online")
    np.testing.assert_allclose(losses(tmp_path / "stored"), losses(tmp_path / "online"), rtol=1e-4)


def test_windows_of_text_are_labelled_as_they_are_trained_on(
    tmp_path: Path, config: LabelConfig, settings: dict[str, Any], teacher_folder: Path
) -> None:
    text = tmp_path / "story.txt"
    text.write_text("The teacher reads it once, and many students read what it thought of every word. " * 3)
    label(replace(config, data=(str(text),), max_tokens=20, tokens_per_position=V), tmp_path / "targets")
    texts = settings | {"data": str(text), "max_tokens": 20}
    train(TrainConfig(**texts, targets=str(tmp_path / "targets")), tmp_path / "stored")
    train(TrainConfig(**texts, teacher=str(teacher_folder)), tmp_path / "online")
    np.testing.assert_allclose(losses(tmp_path / "stored"), losses(tmp_path / "online"), rtol=1e-4)


def test_supervised_gkd_reads_targets(
    tmp_path: Path, settings: dict[str, Any], folders: dict[str, Path], teacher_folder: Path
) -> None:
    supervised = settings | {"method": "gkd", "on_policy_fraction": 0.0, "divergence": "forward_kl", "steps": 1}
    sources: dict[str, dict[str, Any]] = {
        "teacher": {"teacher": str(teacher_folder)},
        **{name: {"targets": str(folders[name])} for name in ("whole", "top")},
        "both": {"teacher": str(teacher_folder), "targets": str(folders["top"])},
    }
    first = {}
    for name, source in sources.items():
        train(TrainConfig(**supervised, **source), tmp_path / name)
        (first[name],) = losses(tmp_path / name)
    assert first["whole"] == pytest.approx(first["teacher"], rel=1e-4)
    assert 0 < first["top"] < first["teacher"]
    assert first["both"] == first["top"]


@pytest.mark.parametrize(
    "change",
    [
        {"divergence": "jsd", "divergence_temperature": 2.0},
        {"divergence": "reverse_kl", "teacher_temperature": 0.5, "pack": True, "pack_tokens": 32, "batch_size": 2},
        {"method": "pretrain", "compute_dtype": "bfloat16", "accumulation_steps": 2},
    ],
)
def test_stored_states_train_as_the_teacher_at_hand_does(
    tmp_path: Path, settings: dict[str, Any], folders: dict[str, Path], teacher_folder: Path, change: dict[str, Any]
) -> None:
    """Whatever the divergence and the temperatures; the teacher's layers are not there."""
    supervised = settings | {"method": "gkd", "on_policy_fraction": 0.0} | change
    train(TrainConfig(**supervised, targets=str(folders["states"])), tmp_path / "stored")
    train(TrainConfig(**supervised, teacher=str(teacher_folder)), tmp_path / "online")
    tolerance = 1e-2 if "compute_dtype" in change else 1e-4  # the states were computed in float32
    np.testing.assert_allclose(losses(tmp_path / "stored"), losses(tmp_path / "online"), rtol=tolerance)
    assert losses(tmp_path / "stored")[2] < losses(tmp_path / "stored")[0]


def test_a_folder_of_states_is_whole_or_refused(folders: dict[str, Path], config: LabelConfig, tmp_path: Path) -> None:
    """The table of logits is part of the folder, and is made again like any other."""
    damaged = tmp_path / "damaged"
    shutil.copytree(folders["states"], damaged)
    (damaged / "head.safetensors").write_bytes(b"")
    with pytest.raises(PartError, match=r"head.safetensors: must have \d+ bytes"):
        TargetFolder(damaged)
    (damaged / "head.safetensors").unlink()
    (damaged / "shard_00002.safetensors").unlink()
    label(replace(config, kind="states"), damaged)
    assert contents(damaged) == contents(folders["states"])


@pytest.mark.parametrize("name", ["shard_00001.safetensors", "head.safetensors"])
def test_a_changed_byte_is_named_when_the_file_is_first_read(
    folders: dict[str, Path], name: str, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folders["states"], damaged)
    content = bytearray((damaged / name).read_bytes())
    content[-1] ^= 1
    (damaged / name).write_bytes(content)
    opened = TargetFolder(damaged)
    opened.rows([[0]], 20)  # of another shard
    with pytest.raises(PartError, match=f"{name}: has changed since it was written"):
        opened.teacher_head() if name.startswith("head") else opened.rows([[opened.settings.shard_examples]], 20)


def test_targets_are_part_of_what_a_run_was_started_under(
    tmp_path: Path, settings: dict[str, Any], folders: dict[str, Path]
) -> None:
    train(TrainConfig(**settings, targets=str(folders["top"])), tmp_path / "run")
    moved = tmp_path / "moved"
    shutil.copytree(folders["top"], moved)
    train(TrainConfig(**settings, targets=str(moved)), tmp_path / "run")  # the same content elsewhere goes on
    with pytest.raises(RunError, match="targets_sha256 was"):
        train(TrainConfig(**settings, targets=str(folders["whole"])), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_new_tokens": 3}, "the examples must be what was labelled"),
        ({"method": "gkd", "on_policy_fraction": 0.0, "divergence": "forward_kl", "divergence_temperature": 2.0},
         "the teacher's temperature must be what was labelled, got 2.0 for 1.0"),
        ({"method": "gkd", "on_policy_fraction": 0.0},
         "targets of kind top tell the divergence forward_kl alone, got jsd; .* --keep states"),
    ],
)  # fmt: skip
def test_targets_of_other_examples_or_temperatures_are_refused(
    tmp_path: Path, settings: dict[str, Any], folders: dict[str, Path], change: dict[str, Any], named: str
) -> None:
    with pytest.raises(RunError, match=named):
        train(TrainConfig(**settings | change, targets=str(folders["top"])), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "sft"}, "targets are read by the methods pretrain and gkd"),
        ({"method": "gkd"}, "needs lambda 0, got 0.5"),
        ({"student": None, "student_layers": (0,)}, "student_layers needs a teacher"),
    ],
)
def test_configurations_that_make_no_sense(settings: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings | change, targets="somewhere")
