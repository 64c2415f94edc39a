"""Whole runs of a few steps: what they write, what they refuse, and that the methods do what they are for."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from attar.distill.config import TrainConfig
from attar.distill.data import DataError
from attar.distill.evaluate import Evaluation
from attar.distill.example_results import read_results, results_path
from attar.distill.progress import Pace, StepReport
from attar.distill.run_folder import RunError, read_metrics
from attar.distill.trainer import train
from attar.distill.training_batches import draws_on_policy
from attar.engine.checkpoint import CheckpointError, load_config, load_model, save_model
from attar.engine.config import ModelConfig
from attar.engine.transformer import init_params


class Recorder:
    """Keeps what a run reports."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.steps: list[StepReport] = []
        self.evaluations: list[tuple[int, Evaluation]] = []

    def on_stage(self, stage: str) -> None:
        self.stages.append(stage)

    def on_note(self, note: str) -> None:
        self.notes.append(note)

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:
        self.evaluations.append((step, evaluation))


@pytest.fixture
def settings(teacher_folder: Path, data_file: Path) -> dict[str, Any]:
    """A run of one shape: one prompt bucket, completions as long as samples."""
    return {
        "data": str(data_file),
        "teacher": str(teacher_folder),
        "student_layers": (0,),
        "max_new_tokens": 8,
        "batch_size": 4,
        "prompt_buckets": 1,
        "steps": 4,
        "learning_rate": 3e-3,
        "checkpoint_every": 2,
    }


def test_a_run_folder_holds_everything(tmp_path: Path, settings: dict[str, Any], data_file: Path) -> None:
    recorder = Recorder()
    config = TrainConfig(**settings, eval_data=str(data_file), eval_every=4, eval_examples=4)
    result = train(config, tmp_path / "run", recorder)

    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("start", 0),
        ("eval", 0),
        *(("train", step) for step in range(1, 5)),
        ("eval", 4),
    ]
    assert lines[0]["normalization"] == "sequence"
    assert [line["on_policy"] for line in lines[2:6]] == [draws_on_policy(0, step, 0.5) for step in range(4)]
    assert [report.step for report in recorder.steps] == [1, 2, 3, 4]
    assert [report.loss for report in recorder.steps] == [line["loss"] for line in lines[2:6]]
    assert [step for step, _ in recorder.evaluations] == [0, 4]
    assert result.evaluation is not None
    assert result.evaluation == recorder.evaluations[-1][1]
    assert [path.name for path in sorted((tmp_path / "run" / "evaluations").iterdir())] == [
        "step-000000.jsonl",
        "step-000004.jsonl",
    ]
    assert read_results(results_path(tmp_path / "run", 4)) == result.evaluation.results

    assert load_config(result.student).num_hidden_layers == 1
    assert load_model(result.student).tokenizer.vocab_size == 259
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["data_examples"] == 5
    assert TrainConfig.from_json({key: written[key] for key in config.to_json()}).beta == config.beta
    page = result.report.read_text()
    assert "data:image/png;base64," in page
    assert "copy abc:" in page
    assert {path.name for path in (tmp_path / "run" / "plots").iterdir()} == {
        "loss.png",
        "kl.png",
        "nll.png",
        "rouge.png",
    }


def test_gkd_comes_closer_to_the_teacher_than_sft(tmp_path: Path, settings: dict[str, Any], data_file: Path) -> None:
    settings |= {"steps": 40, "learning_rate": 1e-2, "checkpoint_every": 100}
    closeness = {}
    for method in ("sft", "gkd"):
        config = TrainConfig(**settings, method=method, eval_data=str(data_file), eval_every=40, beta=0.5)
        recorder = Recorder()
        train(config, tmp_path / method, recorder)
        before, after = (evaluation.scores["kl_student_teacher_samples"] for _, evaluation in recorder.evaluations)
        closeness[method] = after.mean / before.mean
    assert closeness["gkd"] < 0.5
    assert closeness["gkd"] < closeness["sft"]


def test_another_configuration_is_refused_on_resuming(tmp_path: Path, settings: dict[str, Any]) -> None:
    train(TrainConfig(**settings), tmp_path)
    student = (tmp_path / "student" / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match=r"seed was 0, is 1"):
        train(TrainConfig(**settings, seed=1), tmp_path)
    other = tmp_path / "other.jsonl"
    other.write_text(Path(settings["data"]).read_text() + '{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(RunError, match=r"data_sha256 was"):
        train(TrainConfig(**{**settings, "data": str(other)}), tmp_path)
    assert (tmp_path / "student" / "model.safetensors").read_bytes() == student


def test_a_run_that_failed_before_its_first_checkpoint_begins_anew(tmp_path: Path, settings: dict[str, Any]) -> None:
    class Stop(Recorder):
        def on_step(self, report: StepReport) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TrainConfig(**settings, seed=1), tmp_path, Stop())
    train(TrainConfig(**settings), tmp_path)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("start", 0),
        *(("train", step) for step in range(1, 5)),
    ]


def test_a_finished_run_only_writes_its_results_again(tmp_path: Path, settings: dict[str, Any]) -> None:
    first = train(TrainConfig(**settings), tmp_path)
    weights = (first.student / "model.safetensors").read_bytes()
    recorder = Recorder()
    second = train(TrainConfig(**settings), tmp_path, recorder)
    assert recorder.steps == []
    assert second.evaluation is None
    assert (second.student / "model.safetensors").read_bytes() == weights


def test_sft_from_a_folder_needs_no_teacher(tmp_path: Path, settings: dict[str, Any], teacher_folder: Path) -> None:
    del settings["teacher"], settings["student_layers"]
    recorder = Recorder()
    train(TrainConfig(**settings, method="sft", student=str(teacher_folder)), tmp_path, recorder)
    assert recorder.steps[-1].loss < recorder.steps[0].loss
    assert not any(report.on_policy for report in recorder.steps)


def test_a_student_of_random_weights_takes_the_teachers_vocabulary(
    tmp_path: Path, settings: dict[str, Any], teacher_folder: Path
) -> None:
    del settings["student_layers"]
    result = train(TrainConfig(**{**settings, "steps": 1}, student_shape="tiny-llama"), tmp_path)
    assert load_config(result.student).vocab_size == 259
    assert load_config(result.student).eos_token_ids == load_config(teacher_folder).eos_token_ids


def test_vocabularies_that_differ_are_refused(
    tmp_path: Path, settings: dict[str, Any], shape: ModelConfig, tokenizer_folder: Path
) -> None:
    other = tmp_path / "tokenizer"
    other.mkdir()
    for file in tokenizer_folder.iterdir():
        (other / file.name).write_text(file.read_text().replace('"!": 3', '"\\u0000": 3').replace("<pad>", "<unk>"))
    save_model(tmp_path / "student", shape, init_params(shape, jax.random.key(0)), other, {})
    del settings["student_layers"]
    with pytest.raises(RunError, match="teacher and student must share one vocabulary"):
        train(TrainConfig(**settings, student=str(tmp_path / "student")), tmp_path / "run")


def test_a_diverged_run_stops_before_its_checkpoint(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = TrainConfig(
        **{**settings, "learning_rate": 1e30, "max_grad_norm": 1e30, "steps": 8, "checkpoint_every": 8}
    )
    with pytest.raises(RunError, match=r"loss and gradient must stay finite.*lower learning_rate"):
        train(config, tmp_path)
    assert not (tmp_path / "student").exists()


def test_bad_inputs_are_refused(tmp_path: Path, settings: dict[str, Any], data_file: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        train(TrainConfig(**{**settings, "teacher": str(tmp_path / "nowhere")}), tmp_path / "a")
    with pytest.raises(RunError, match=r"student_layers: .*from 0 to 1"):
        train(TrainConfig(**{**settings, "student_layers": (5,)}), tmp_path / "b")
    with pytest.raises(RunError, match="max_new_tokens must be below the context of 64"):
        train(TrainConfig(**{**settings, "max_new_tokens": 64}), tmp_path / "c")
    with pytest.raises(DataError, match="the prompt must have at most 12 tokens"):
        train(TrainConfig(**{**settings, "max_prompt_tokens": 12}), tmp_path / "d")
    with pytest.raises(RunError, match="the folder cannot be written"):
        train(TrainConfig(**settings), data_file / "run")


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_lambda_is_the_share_of_batches(fraction: float) -> None:
    draws = [draws_on_policy(3, step, fraction) for step in range(4000)]
    assert np.mean(draws) == pytest.approx(fraction, abs=0.0 if fraction in (0.0, 1.0) else 0.025)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "rl"}, "method must be one of sft, pretrain, gkd, uld, got 'rl'"),
        ({"schedule": "step"}, "schedule must be one of constant, linear, cosine"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, got nan"),
        ({"warmup_steps": 5}, "warmup_steps must be between 0 and steps, got 5 and 4"),
        ({"accumulation_steps": 3}, "accumulation_steps must divide batch_size, got 3 and 4"),
        ({"beta": 1.5}, r"beta must be in \[0, 1\], got 1.5"),
        ({"on_policy_fraction": -0.1}, r"lambda must be in \[0, 1\], got -0.1"),
        ({"top_p": 0.0}, "top_p must lie in"),
        ({"teacher": None}, "method gkd needs a teacher, got none"),
        ({"student": "a"}, "exactly one of student, .* must be given, got student, student_layers"),
        ({"student_layers": None}, "exactly one of student, .* must be given, got none"),
    ],
)
def test_configurations_that_make_no_sense(settings: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{**settings, **change})


def test_unknown_keys_of_a_configuration_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="unknown keys: learning_rat"):
        TrainConfig.from_json({**settings, "learning_rat": 1.0})


def test_pace_leaves_out_steps_that_compile() -> None:
    pace = Pace()
    pace.add((0, 8), 100.0, 10)
    assert (pace.tokens_per_second, pace.eta_seconds(5)) == (None, None)
    pace.add((0, 8), 2.0, 10)
    pace.add((1, 8), 100.0, 10)
    assert pace.tokens_per_second == 5.0
    assert pace.eta_seconds(5) == 10.0
