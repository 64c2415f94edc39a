"""Trains a student in a run folder; a run that was killed goes on from its last checkpoint to the same weights.

A step is a function of the TrainState and its number (see `training_batches`), so a resumed run repeats the steps after
the checkpoint exactly.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError

from attar.distill.adapters import save_adapter
from attar.distill.alignment import shared_tokens
from attar.distill.batches import choose_buckets
from attar.distill.checkpointing import list_checkpoints, load_checkpoint, save_checkpoint
from attar.distill.config import TrainConfig
from attar.distill.counted import AnyBatch, row_utilization
from attar.distill.data import DataSet
from attar.distill.evaluate import EvalSettings, Evaluation, Network, evaluate
from attar.distill.example_results import results_path, write_results
from attar.distill.initial_student import INITIAL, pruned_student
from attar.distill.log_sinks import MetricsFollower, Several
from attar.distill.methods.method import Method
from attar.distill.methods.uld import Uld
from attar.distill.models import RunModels, load_models
from attar.distill.progress import Callback, Pace, Silent, StepReport
from attar.distill.report import write_report
from attar.distill.run_folder import MetricsLog, RunError, SilentLog, hold_folder, settle_config
from attar.distill.run_inputs import (
    held_out_buckets,
    load_data,
    open_targets,
    resolved_config,
)
from attar.distill.step import (
    StepMetrics,
    init_state,
    learning_rate_schedule,
    make_optimizer,
    make_train_step,
)
from attar.distill.target_folder import TargetFolder
from attar.distill.training_batches import StepBatch, TrainingBatches, in_dtype
from attar.engine.checkpoint import save_model
from attar.engine.compiler_memory import give_back_after_compiling
from attar.engine.processes import by_first, is_first
from attar.engine.sharding import on_mesh, weight_shardings
from attar.engine.transformer import Params

# Paths may change between start and resumption, since the content behind them is compared by hash.
CHANGEABLE = frozenset(
    {
        "data",
        "eval_data",
        "teacher",
        "targets",
        "student",
        "checkpoint_every",
        "keep_checkpoints",
        "log",
        "mesh",
        "versions",
    }
)


@dataclass(frozen=True)
class TrainResult:
    """What a finished run left.

    Attributes:
      student: Folder of the trained model, in Hugging Face layout.
      report: The report for a browser.
      evaluation: Of the final weights; None where the run evaluates nothing or was finished before.
    """

    student: Path
    report: Path
    evaluation: Evaluation | None


def train(config: TrainConfig, run_dir: Path, callback: Callback | None = None) -> TrainResult:
    """Trains, or continues, the run in a folder.

    Args:
      config: What to do. On resuming it must equal the one that the run was started under.
      run_dir: Run folder (see `run_folder`); made if absent.
      callback: Hears of the progress.

    Raises:
      RunError: If the folder cannot be used, the configuration differs from the run's, the vocabularies differ,
        or the loss stops being finite. The last checkpoint is intact.
      DataError: If the data cannot be used.
      CheckpointError: If a model cannot be read.
    """
    give_back_after_compiling()
    with on_mesh(config.mesh):
        if not is_first():
            return _prepare(config, run_dir, callback or Silent()).finish()
        with hold_folder(run_dir), MetricsFollower(run_dir, config.log) as follower:
            return _prepare(config, run_dir, Several(follower, callback or Silent())).finish()


def _prepare(config: TrainConfig, run_dir: Path, callback: Callback) -> _Run:
    """Loads what the run needs and takes up its state. The initial weights are let go on return."""
    callback.on_stage("loading models")
    models = load_models(config)
    callback.on_stage("reading data")
    data, held_out = load_data(config, models)
    targets = open_targets(config, models, data)
    if config.student_prune is not None:
        if jax.process_count() > 1:
            raise RunError("a student is pruned in one process: begin the run in one, then go on with several")
        callback.on_stage("choosing what to keep of the teacher")
        models = pruned_student(config, run_dir, models, data, callback.on_note)
    run = _Run(config, run_dir, callback, models, data, held_out, targets)
    run.take_up(models.student.params, resolved_config(config, models, data, held_out, targets))
    return run


class _Run:
    """One run in progress: what it reads, its state, and its log."""

    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path,
        callback: Callback,
        models: RunModels,
        data: DataSet,
        held_out: DataSet | None,
        targets: TargetFolder | None,
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._callback = callback
        self._student = models.student.config
        self._teacher = models.teacher and in_dtype(models.teacher, config.compute_dtype)
        self._tokenizer = models.tokenizer
        self._tokenizer_source = models.tokenizer_source
        self._held_out = held_out
        self._scorer = self._teacher  # what a step reads of the teacher
        from_states = targets is not None and targets.settings.kind == "states"
        if targets is not None and from_states:
            self._scorer = in_dtype(Network(*targets.teacher_head()), config.compute_dtype)
        self._method = _for_vocabularies(config.make_method(from_states=from_states), models)
        self._parametrization = config.make_parametrization(self._student)
        self._optimizer = make_optimizer(config.optimizer_config())
        schedule = learning_rate_schedule(config.optimizer_config())
        self._learning_rates = np.asarray(jax.vmap(schedule)(np.arange(config.steps)))  # of each step, for the log
        self._pace = Pace()
        buckets = choose_buckets(data, config.prompt_buckets, config.completion_buckets)
        self._batches = TrainingBatches(config, models, data, targets, buckets)
        # Packed rows share no shape with what is evaluated, which then chooses its own.
        self._eval_buckets = None if held_out is None or config.pack else held_out_buckets(buckets, held_out)
        self._train_step = make_train_step(
            self._student,
            self._scorer.config if self._scorer is not None and self._method.needs_teacher else None,
            self._method,
            self._optimizer,
            normalization=config.normalization,
            accumulation_steps=config.accumulation_steps,
            remat=config.remat,
            compute_dtype=config.compute_dtype,
            parametrization=self._parametrization,
        )

    def take_up(self, params: Params, resolved: dict[str, Any]) -> None:
        """Goes on from the last checkpoint, or begins with the given weights.

        A run without a checkpoint has nothing to be true to: it begins anew, under whatever configuration.
        """
        checkpoints = by_first(lambda: [str(path) for path in list_checkpoints(self._run_dir / "checkpoints")])
        by_first(lambda: settle_config(self._run_dir, resolved, CHANGEABLE, resuming=bool(checkpoints)))
        trained, self._frozen = self._parametrization.split(params, jax.random.key(self._config.seed))
        begin = partial(init_state, optimizer=self._optimizer)
        like = jax.eval_shape(begin, trained)
        shardings = weight_shardings(like, self._student)
        if checkpoints:
            self._state = load_checkpoint(Path(checkpoints[-1]), like, shardings)
        else:
            self._state = begin(trained) if shardings is None else jax.jit(begin, out_shardings=shardings)(trained)
        self._start = int(self._state.step)
        last_step = self._start if checkpoints else None
        self._log = MetricsLog(self._run_dir / "metrics.jsonl", last_step) if is_first() else SilentLog()

    def finish(self) -> TrainResult:
        """Does the steps that are left, then writes the model and the report."""
        with self._log:
            evaluation = self._train()
        return self._write_results(evaluation)

    def _train(self) -> Evaluation | None:
        """Does the steps that are left; returns the last evaluation, if there was one."""
        evaluation = None
        if self._start == 0:
            self._log_start()
            evaluation = self._evaluate(0)
        self._callback.on_stage("training")
        for step in range(self._start, self._config.steps):
            self._step(step)
            if self._is_due(step + 1, self._config.eval_every):
                evaluation = self._evaluate(step + 1)
            if self._is_due(step + 1, self._config.checkpoint_every):
                self._save(step + 1)
        return evaluation

    def _step(self, step: int) -> None:
        began = time.perf_counter()
        read = self._batches.read(step, self._network)
        teacher = self._scorer if self._method.needs_teacher else None
        self._state, metrics = self._train_step(self._state, teacher and teacher.params, read.batch, self._frozen)
        self._report(step + 1, read, metrics, began)

    def _network(self) -> Network:
        """The student as it computes now."""
        return Network(self._parametrization.effective(self._state.params, self._frozen), self._student)

    def _report(self, step: int, read: StepBatch, metrics: StepMetrics, began: float) -> None:
        """Logs one step; reading the loss waits for the device."""
        loss, grad_norm, tokens = float(metrics.loss), float(metrics.grad_norm), int(metrics.completion_tokens)
        seconds = time.perf_counter() - began
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise RunError(
                f"{self._run_dir}: loss and gradient must stay finite, got {loss} and {grad_norm} at step {step}; "
                "start again in another folder with a lower learning_rate or a longer warm-up"
            )
        learning_rate = float(self._learning_rates[step - 1])
        sizes = (size for leaf in jax.tree.leaves(read.batch) for size in leaf.shape)
        self._pace.add((int(read.on_policy), *sizes), seconds, tokens)
        report = StepReport(
            step,
            self._config.steps,
            loss,
            grad_norm,
            learning_rate,
            read.on_policy,
            self._pace.tokens_per_second,
            self._pace.eta_seconds(self._config.steps - step),
        )
        values = {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate, "on_policy": read.on_policy}
        self._log.write(step, {"kind": "train", **values, **read.told, **self._amounts(read.batch, tokens, seconds)})
        self._callback.on_step(report)

    def _amounts(self, batch: AnyBatch, tokens: int, seconds: float) -> dict[str, Any]:
        """What a step worked on, for the log."""
        filled = round(row_utilization(batch, tokens), 4)
        return {"completion_tokens": tokens, "row_utilization": filled, "seconds": round(seconds, 4)}

    def _evaluate(self, step: int) -> Evaluation | None:
        if self._held_out is None:
            return None
        self._callback.on_stage("evaluating")
        student = self._network()
        settings = EvalSettings(self._config.batch_size, self._config.max_new_tokens, self._config.seed)
        teacher = None if self._batches.other_vocabulary else self._teacher  # of the same vocabulary
        evaluation = evaluate(student, teacher, self._tokenizer, self._held_out, settings, self._eval_buckets)
        by_first(lambda: write_results(results_path(self._run_dir, step), evaluation.results))
        scores = {name: asdict(interval) for name, interval in evaluation.scores.items()}
        samples = [asdict(sample) for sample in evaluation.samples]
        line = {"kind": "eval", "perplexity": evaluation.perplexity, "scores": scores, "samples": samples}
        self._log.write(step, line)
        self._callback.on_evaluation(step, evaluation)
        return evaluation

    def _log_start(self) -> None:
        parameters = {"student_parameters": self._student.num_parameters}
        if self._teacher is not None:
            parameters["teacher_parameters"] = self._teacher.config.num_parameters
        self._log.write(0, {"kind": "start", "normalization": self._config.normalization, **parameters})

    def _save(self, step: int) -> None:
        self._log.sync()
        folder = self._run_dir / "checkpoints"
        save_checkpoint(folder, self._state, self._batches.position(step), self._config.keep_checkpoints)

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self._config.steps

    def _write_results(self, evaluation: Evaluation | None) -> TrainResult:
        self._callback.on_stage("writing the student")
        student, source = self._run_dir / "student", self._tokenizer_source
        provenance = {"run": self._config.to_json(), "steps": self._config.steps}
        try:
            weights = self._parametrization.saved(self._state.params, self._frozen)
            save_model(student, self._student, weights, source, provenance)
            self._write_adapter(provenance)
            self._callback.on_stage("writing the report")
            report = Path(by_first(lambda: str(write_report(self._run_dir))))
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self._run_dir}: cannot be written: {error}; free space and resume the run") from None
        return TrainResult(student, report, evaluation)

    def _write_adapter(self, provenance: dict[str, Any]) -> None:
        """An adapter by itself, and the model it belongs to where that is in no other folder."""
        lora = self._config.make_lora()
        if lora is None or self._frozen is None:
            return
        folder = self._run_dir / INITIAL
        base = self._config.student or str(folder)
        if self._config.student is None and self._config.student_prune is None:  # a pruned one is there already
            save_model(folder, self._student, self._frozen, self._tokenizer_source, provenance)
        by_first(lambda: save_adapter(self._run_dir / "adapter", lora, self._state.params, base, provenance))


def _for_vocabularies(method: Method, models: RunModels) -> Method:
    """The method with what it must know of the two vocabularies."""
    if not isinstance(method, Uld) or models.teacher is None or models.teacher_tokenizer is None:
        return method
    rows = models.student.config.vocab_size, models.teacher.config.vocab_size
    return replace(method, shared=shared_tokens(models.tokenizer, models.teacher_tokenizer, *rows))
