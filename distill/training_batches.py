"""The batch that each step of a run learns from: the data's, the student's answers to it, or a view of a teacher's.

Nothing random has state of its own: the data order depends on (seed, epoch), the λ draw and the sampling key of a step
on (seed, step). A step's batch is therefore a function of the student's weights and the step's number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from attar.distill.batches import Batch, Buckets
from attar.distill.config import TrainConfig
from attar.distill.counted import AnyBatch, completion_tokens
from attar.distill.data import DataSet
from attar.distill.evaluate import Network
from attar.distill.models import RunModels
from attar.distill.rewarded_rollout import make_rollout
from attar.distill.rollout import sample_batch
from attar.distill.run_inputs import open_stream, open_teacher_reader
from attar.distill.step import ComputeDtype, cast_matrices
from attar.distill.target_folder import TargetFolder
from attar.engine.sharding import place_rows

_COIN = 1  # tells the λ draws' random numbers from others made of (seed, step)


class StepBatch(NamedTuple):
    """What a step learns from.

    Attributes:
      batch: Placed on the mesh.
      on_policy: Whether the completions are the student's.
      told: What the log is told of the samples.
    """

    batch: AnyBatch
    on_policy: bool
    told: dict[str, float]


class TrainingBatches:
    """A run's batches."""

    def __init__(
        self, config: TrainConfig, models: RunModels, data: DataSet, targets: TargetFolder | None, buckets: Buckets
    ) -> None:
        self._config = config
        self._student = models.student.config
        self._eos_token_ids = models.tokenizer.eos_token_ids
        self._examples = data.examples
        self._targets = targets
        self._on_policy_fraction = config.make_method().on_policy_fraction
        self._rollout = make_rollout(config, models.tokenizer)
        self._teacher_reader = open_teacher_reader(config, models)
        self._stream = open_stream(config, models, data, buckets)

    @property
    def other_vocabulary(self) -> bool:
        """Whether the teacher reads batches in tokens of its own."""
        return self._teacher_reader is not None

    def position(self, step: int) -> tuple[int, int]:
        """Where in the data a step begins: passes over it, and batches since."""
        return self._stream.position(step)

    def read(self, step: int, student: Callable[[], Network]) -> StepBatch:
        """The batch of a step.

        Args:
          student: Gives the student as it computes now; asked where it is to answer.
        """
        batch, told = place_rows(self._given(step)), dict[str, float]()
        on_policy = draws_on_policy(self._config.seed, step, self._on_policy_fraction)
        if on_policy:
            assert isinstance(batch, Batch)  # as a configuration that packs has λ = 0
            sampled, told = self._sample(batch, step, student())
            batch = place_rows(sampled)
        if self._teacher_reader is not None:
            assert isinstance(batch, Batch)  # as uld refuses to pack
            batch = place_rows(self._teacher_reader.view(batch, self._stream.members(step)))
        return StepBatch(batch, on_policy, told)

    def _given(self, step: int) -> AnyBatch:
        """The data's batch of a step, with what is stored for it."""
        batch = self._stream.batch(step)
        if self._targets is None:
            return batch
        num_positions = completion_tokens(batch).shape[1]
        return batch._replace(stored=self._targets.rows(self._stream.members(step), num_positions))

    def _sample(self, batch: Batch, step: int, student: Network) -> tuple[Batch, dict[str, float]]:
        """The batch with the student's answers, and what the log is told of them."""
        params = in_dtype(student, self._config.compute_dtype).params
        key = jax.random.fold_in(jax.random.key(self._config.seed), step)
        if self._rollout is not None:
            examples = [self._examples[index] for (index,) in self._stream.members(step)]
            rewarded, reward = self._rollout.sample(params, self._student, batch, examples, key)
            return rewarded, {"reward": reward}
        sampled = sample_batch(
            params,
            self._student,
            batch,
            max_new_tokens=self._config.max_new_tokens,
            sampling=self._config.sampling_params(),
            eos_token_ids=self._eos_token_ids,
            key=key,
        )
        return sampled, {}


def draws_on_policy(seed: int, step: int, fraction: float) -> bool:
    """One draw of u in [0, 1) per batch: on-policy if u < λ, so never for λ = 0 and always for λ = 1."""
    return bool(np.random.default_rng([seed, step, _COIN]).random() < fraction)


_cast = jax.jit(cast_matrices, static_argnames="dtype")


def in_dtype(network: Network, dtype: ComputeDtype) -> Network:
    """The network with matrices of the dtype."""
    return network if dtype == "float32" else Network(_cast(network.params, dtype), network.config)
