"""On-policy batches: the student answers the prompts of a batch, and its answers take the place of the data's."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Array

from attar.distill.batches import Batch
from attar.engine.config import ModelConfig
from attar.engine.generate import Generation, generate
from attar.engine.sampling import SamplingParams
from attar.engine.sharding import place_rows
from attar.engine.transformer import Params


def sample_batch(
    params: Params,
    config: ModelConfig,
    batch: Batch,
    *,
    max_new_tokens: int,
    sampling: SamplingParams,
    eos_token_ids: Sequence[int],
    key: Array,
) -> Batch:
    """The batch with completions drawn from the model.

    Tokens are integers, so no gradient can pass through the sampling. The arrays stay on the device: the host
    waits for nothing.

    Args:
      params: Weights of the model that answers.
      batch: Prompts [B, P]; its completions are not read.
      max_new_tokens: Length N of the new completions, rows that end earlier being padded.
      sampling: How tokens are drawn.
      eos_token_ids: Ids that end a completion; the id itself belongs to it and counts in its length.
      key: JAX random key.

    Returns:
      A batch of shapes [B, P] and [B, max_new_tokens].
    """
    prompts, lengths = place_rows((batch.prompts, batch.prompt_lengths))
    generation = generate(
        params,
        config,
        prompts,
        lengths,
        max_new_tokens=max_new_tokens,
        key=key,
        sampling=sampling,
        eos_token_ids=eos_token_ids,
    )
    return completed_batch(batch._replace(prompts=prompts, prompt_lengths=lengths), generation)


def completed_batch(batch: Batch, generation: Generation) -> Batch:
    """The prompts of a batch with generated completions."""
    return Batch(batch.prompts, batch.prompt_lengths, generation.tokens, generation.lengths)
