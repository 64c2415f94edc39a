"""On-policy batches with rewards: prompts answered once or several times, read as texts, and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from attar.distill.batches import Batch
from attar.distill.config import TrainConfig
from attar.distill.data import Example
from attar.distill.losses import Normalization
from attar.distill.policy_gradient import PolicyLabels, scaled_advantages
from attar.distill.rewards import Reward, find_reward, leave_one_out, score
from attar.distill.rollout import completed_batch
from attar.engine.config import ModelConfig
from attar.engine.generate import Generation, generate
from attar.engine.sampling import SamplingParams
from attar.engine.sharding import to_host
from attar.engine.tokenizer import Tokenizer
from attar.engine.transformer import Params


@dataclass(frozen=True)
class RewardedRollout:
    """How rewarded batches are made.

    Attributes:
      reward: Scores the completions.
      name: The reward's, for messages.
      samples_per_prompt: G; a batch of B rows holds B / G prompts, the samples of each after one another.
      normalization: How the loss is averaged.
      max_new_tokens: Longest completion.
      sampling: How tokens are drawn.
      tokenizer: Of the student.
    """

    reward: Reward
    name: str
    samples_per_prompt: int
    normalization: Normalization
    max_new_tokens: int
    sampling: SamplingParams
    tokenizer: Tokenizer

    def sample(
        self, params: Params, config: ModelConfig, batch: Batch, examples: Sequence[Example], key: Array
    ) -> tuple[Batch, float]:
        """The batch with samples of the student, their advantages and log-probabilities, and the mean reward.

        Args:
          params, config: The student.
          batch: Prompts [B, P], of which the first B / G are answered.
          examples: Of its B rows.
          key: JAX random key.

        Raises:
          RewardError: If the reward fails.
        """
        rows = np.repeat(np.arange(len(examples) // self.samples_per_prompt), self.samples_per_prompt)
        asked = jax.tree.map(lambda leaf: to_host(leaf)[rows], batch)
        generation = generate(
            params,
            config,
            asked.prompts,
            asked.prompt_lengths,
            max_new_tokens=self.max_new_tokens,
            key=key,
            sampling=self.sampling,
            eos_token_ids=self.tokenizer.eos_token_ids,
        )
        rewards = self._rewards(generation, [examples[row] for row in rows.tolist()])
        lengths = to_host(generation.lengths)
        advantages = leave_one_out(rewards, self.samples_per_prompt)
        scaled = scaled_advantages(advantages, lengths, self.max_new_tokens, self.normalization)
        policy = PolicyLabels(jax.device_put(scaled), generation.log_probs)
        return completed_batch(asked, generation)._replace(policy=policy), float(rewards.mean())

    def _rewards(self, generation: Generation, examples: Sequence[Example]) -> NDArray[np.float64]:
        tokens, lengths = to_host(generation.tokens), to_host(generation.lengths)
        texts = [self.tokenizer.decode(tokens[i, : lengths[i]].tolist()) for i in range(len(examples))]
        prompts = [example.prompt_text for example in examples]
        return score(self.reward, self.name, prompts, texts, [example.reference for example in examples])


def make_rollout(config: TrainConfig, tokenizer: Tokenizer) -> RewardedRollout | None:
    """What a run's configuration asks for; None where it has no reward.

    Raises:
      RewardError: If there is no reward of that name.
    """
    if config.reward is None:
        return None
    return RewardedRollout(
        find_reward(config.reward),
        config.reward,
        config.samples_per_prompt,
        config.normalization,
        config.max_new_tokens,
        config.sampling_params(),
        tokenizer,
    )
