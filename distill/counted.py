"""What of a batch counts: the hidden states that predict its completion tokens, these tokens, and their weights.

A batch is laid out in one of two ways, and a training step asks these functions instead of the layout.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from attar.distill.batches import Batch
from attar.distill.losses import Normalization, completion_mask, token_weights
from attar.distill.methods.method import Labels
from attar.distill.packing import PackedBatch
from attar.distill.stored_targets import TeacherStates
from attar.engine.config import ModelConfig
from attar.engine.sharding import to_host
from attar.engine.transformer import Params, head_table, hidden_states

AnyBatch = Batch | PackedBatch


def completion_tokens(batch: AnyBatch) -> Int[Array, "B N"]:
    """The counted tokens, those of each row first."""
    return jnp.asarray(batch.targets if isinstance(batch, PackedBatch) else batch.completions)


def labels(batch: AnyBatch) -> Labels:
    """What a method's loss reads of the batch at each counted token."""
    policy = None if isinstance(batch, PackedBatch) else batch.policy
    stored = None if isinstance(batch.stored, TeacherStates) else batch.stored
    return Labels(completion_tokens(batch), stored, policy)


def counted_mask(batch: AnyBatch) -> Bool[Array, "B N"]:
    """True on the counted ones of `completion_tokens`."""
    if isinstance(batch, PackedBatch):
        return jnp.asarray(batch.lengths) > 0
    mask = completion_mask(jnp.asarray(batch.completion_lengths), batch.completions.shape[1])
    return mask if batch.view is None else mask & (jnp.asarray(batch.view.positions) >= 0)


def counted_weights(batch: AnyBatch, normalization: Normalization) -> Float[Array, "B N"]:
    """Weights of the counted tokens, which sum to 1; an example weighs the same in a row of its own and packed."""
    mask = counted_mask(batch)
    if normalization == "token" or not isinstance(batch, PackedBatch):
        return token_weights(mask, normalization)
    num_sequences = jnp.maximum(jnp.asarray(batch.num_sequences).sum(), 1)
    return mask.astype(jnp.float32) / jnp.maximum(jnp.asarray(batch.lengths), 1) / num_sequences


def row_utilization(batch: AnyBatch, num_completion_tokens: int) -> float:
    """Share of the columns of a batch that hold tokens; the rest is padding.

    Args:
      batch: Its prompt lengths, or packed rows, are read to the host.
      num_completion_tokens: Of the whole batch.
    """
    if isinstance(batch, PackedBatch):
        return float((to_host(batch.segment_ids) > 0).mean())
    tokens = int(to_host(batch.prompt_lengths).sum()) + num_completion_tokens
    return tokens / (batch.prompts.size + batch.completions.size)


def completion_hidden(
    params: Params, config: ModelConfig, batch: AnyBatch, *, remat: bool = False, constant: bool = False
) -> Float[Array, "B N D"]:
    """Hidden states that predict each of the N completion positions.

    Args:
      remat: Recompute activations in the backward pass.
      constant: Nothing is differentiated: the last layer leaves out what only other positions need.
    """
    if isinstance(batch, PackedBatch):
        return _packed_hidden(params, config, batch, remat=remat)
    P, N = batch.prompts.shape[1], batch.completions.shape[1]
    tokens = jnp.concatenate([batch.prompts, batch.completions[:, :-1]], axis=1)  # [B, P+N-1]
    real_prompt = jnp.arange(P)[None, :] >= P - batch.prompt_lengths[:, None]
    # The prediction of the last counted token needs only what precedes it, so N-1 completion columns are read.
    real_completion = completion_mask(jnp.asarray(batch.completion_lengths), N)[:, :-1]
    padding_mask = jnp.concatenate([real_prompt, real_completion], axis=1)
    # In bfloat16 a layer on fewer columns rounds otherwise, and a student equal to its teacher must have loss 0.
    last = N if constant and head_table(params, config).dtype == jnp.float32 else None
    hidden = hidden_states(params, config, tokens, padding_mask=padding_mask, remat=remat, last=last)
    return hidden[:, -N:]  # [B, N, D]


def teacher_hidden(params: Params, config: ModelConfig, batch: AnyBatch) -> Float[Array, "B N D"]:
    """The teacher's hidden states at the positions of `completion_hidden`, or behind the same text in its tokens.

    Where they are stored with the batch, `params` need hold no more than the table of logits.
    """
    if isinstance(batch.stored, TeacherStates):
        return jnp.asarray(batch.stored.hidden, head_table(params, config).dtype)
    if isinstance(batch, PackedBatch) or batch.view is None:
        return completion_hidden(params, config, batch, constant=True)
    hidden = completion_hidden(params, config, Batch(*batch.view[:4]), constant=True)  # [B, M, D]
    positions = jnp.maximum(jnp.asarray(batch.view.positions), 0)
    return jnp.take_along_axis(hidden, positions[:, :, None], axis=1)  # [B, N, D]


def _packed_hidden(params: Params, config: ModelConfig, batch: PackedBatch, *, remat: bool) -> Float[Array, "B T D"]:
    segment_ids = jnp.asarray(batch.segment_ids)
    hidden = hidden_states(params, config, jnp.asarray(batch.tokens), segment_ids=segment_ids, remat=remat)
    return jnp.take_along_axis(hidden, jnp.asarray(batch.sources)[:, :, None], axis=1)  # [B, T, D]
