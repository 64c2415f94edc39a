"""Scores a data set with the teacher once, and keeps a part of its distribution at every completion position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from attar.distill.batches import Batch, choose_buckets
from attar.distill.counted import completion_hidden
from attar.distill.data import TEXT_WINDOW, DataSet, Limits, PromptFormat, Windows, load_mixture
from attar.distill.models import params_fingerprint
from attar.distill.part_folder import PartError, open_parts
from attar.distill.projected_loss import chunk_positions
from attar.distill.records import Documents
from attar.distill.step import ComputeDtype, cast_matrices
from attar.distill.stored_targets import DrawnTargets, StoredTargets, TeacherStates, TopTargets
from attar.distill.target_folder import (
    INDEX,
    Shard,
    TargetKind,
    TargetSettings,
    examples_sha256,
    finish_index,
    shard_path,
    write_head,
    write_shard,
)
from attar.distill.token_scores import example_batches
from attar.engine.checkpoint import Model, load_model
from attar.engine.config import ModelConfig
from attar.engine.layers import head_logits
from attar.engine.sampling import invert_cdf
from attar.engine.transformer import Params, head_table


@dataclass(frozen=True)
class LabelConfig:
    """What to label, and what to keep. Lengths are in tokens.

    Attributes:
      data: Files, or glob patterns of such, as a run will read them: `TrainConfig.data`.
      teacher: Folder in Hugging Face layout, or `.gguf` file.
      kind: Keep the likeliest tokens, draw some, or keep the hidden states that all logits are made of.
      tokens_per_position: K, how many. Hidden states have none, as they have no temperature.
      temperature: Divides the teacher's logits.
      max_new_tokens: Longest completion kept of the data.
      max_prompt_tokens: Longest prompt allowed; None is what the teacher's context leaves.
      prompt_format: See `data.PromptFormat`.
      documents: See `records.Documents`.
      max_tokens: Window that plain text is cut into; None is a run's default.
      batch_size: Rows worked on at a time.
      shard_examples: Examples in a file.
      compute_dtype: Of the teacher's products.
      seed: Of what is drawn.
    """

    data: tuple[str, ...]
    teacher: str
    kind: TargetKind = "top"
    tokens_per_position: int = 64
    temperature: float = 1.0
    max_new_tokens: int = 128
    max_prompt_tokens: int | None = None
    prompt_format: PromptFormat = "auto"
    documents: Documents = "file"
    max_tokens: int | None = None
    batch_size: int = 16
    shard_examples: int = 1024
    compute_dtype: ComputeDtype = "float32"
    seed: int = 0


def label(config: LabelConfig, out: Path, on_examples: Callable[[int, int], None] = lambda done, of: None) -> Any:
    """Makes, or goes on making, a folder of targets. Shards that are there are not made again.

    Args:
      config: What to do; on going on it must lead to the settings that the folder was begun under.
      out: See `target_folder`.
      on_examples: Hears how many examples are done, of how many.

    Returns:
      The finished index.

    Raises:
      PartError: If the folder cannot be used or was begun under other settings.
      DataError: If the data cannot be used.
      CheckpointError: If the teacher cannot be read.
    """
    model = load_model(Path(config.teacher))
    limits = _limits(config, model.config)
    data = load_mixture(config.data, None, model.tokenizer, limits, config.prompt_format, config.documents)
    settings = _settings(config, model, data)
    told: dict[str, Any] = {"teacher": config.teacher, "data": list(config.data), "data_sha256": data.sha256}
    if config.kind == "states":
        told["teacher_config"] = model.config.to_hf()
    with open_parts(out, INDEX, {**settings.to_json(), **told}, frozenset({"shards", *told})):
        if config.kind == "states":
            write_head(out, model.params, model.config)
        score = _Teacher(cast_matrices(model.params, config.compute_dtype), model.config, settings, config, data)
        for number in range(settings.num_shards):
            begin = number * settings.shard_examples
            end = min(begin + settings.shard_examples, settings.num_examples)
            on_examples(begin, settings.num_examples)
            if not shard_path(out, number).exists():
                write_shard(shard_path(out, number), score.shard(begin, end, on_examples), settings.vocab_size)
        on_examples(settings.num_examples, settings.num_examples)
        return finish_index(out, settings, told)


def _limits(config: LabelConfig, teacher: ModelConfig) -> Limits:
    room = teacher.max_position_embeddings - config.max_new_tokens
    if room < 1:
        raise PartError(
            f"max_new_tokens must be below the context of {teacher.max_position_embeddings} tokens, "
            f"got {config.max_new_tokens}; lower it"
        )
    prompt_tokens = room if config.max_prompt_tokens is None else min(room, config.max_prompt_tokens)
    context = teacher.max_position_embeddings
    if config.max_tokens is not None and config.max_tokens > context:
        raise PartError(
            f"max_tokens must be at most the context of {context} tokens, got {config.max_tokens}; lower it"
        )
    windows = Windows(min(TEXT_WINDOW, context) if config.max_tokens is None else config.max_tokens)
    return Limits(prompt_tokens, config.max_new_tokens, windows=windows)


def _settings(config: LabelConfig, model: Model, data: DataSet) -> TargetSettings:
    vocab_size = min(model.config.vocab_size, model.tokenizer.vocab_size)  # a table may be padded
    k = config.tokens_per_position
    if config.kind == "top" and k > vocab_size:
        raise PartError(f"the tokens kept must be at most the vocabulary's {vocab_size}, got {k}; lower it")
    return TargetSettings(
        kind=config.kind,
        tokens_per_position=0 if config.kind == "states" else k,
        temperature=1.0 if config.kind == "states" else config.temperature,
        seed=config.seed if config.kind == "drawn" else None,
        vocab_size=vocab_size,
        compute_dtype=config.compute_dtype,
        teacher_fingerprint=params_fingerprint(model.params),
        tokenizer_fingerprint=model.tokenizer.fingerprint(),
        examples_sha256=examples_sha256(data.examples),
        num_examples=len(data.examples),
        shard_examples=config.shard_examples,
    )


class _Teacher:
    """Scores examples of a data set; what an example is given depends on itself and its batch alone."""

    def __init__(
        self, params: Params, shape: ModelConfig, settings: TargetSettings, config: LabelConfig, data: DataSet
    ) -> None:
        self._params = params
        self._shape = shape
        self._settings = settings
        self._batch_size = config.batch_size
        self._key = jax.random.key(config.seed)
        self._examples = data.examples
        self._buckets = choose_buckets(data, 3, 1)

    def shard(self, begin: int, end: int, on_examples: Callable[[int, int], None]) -> Shard:
        examples = self._examples[begin:end]
        found: list[dict[str, Any]] = [{}] * len(examples)
        done = begin
        for batch, rows in example_batches(examples, min(self._batch_size, len(examples)), self._buckets):
            kept = self._score(batch, np.resize(np.array(rows) + begin, len(batch.prompts)))
            arrays = {name: np.asarray(array) for name, array in kept._asdict().items()}
            for i, row in enumerate(rows):
                length = len(examples[row].completion)
                found[row] = {name: array[i, :length] for name, array in arrays.items()}
            done += len(rows)
            on_examples(done, self._settings.num_examples)
        lengths = np.array([len(example.completion) for example in examples], np.int64)
        return Shard(lengths, {name: np.concatenate([example[name] for example in found]) for name in found[0]})

    def _score(self, batch: Batch, indices: Int[np.ndarray[Any, Any], " B"]) -> StoredTargets:
        settings = self._settings
        hidden = _hidden(self._params, self._shape, batch)
        if settings.kind == "states":
            return TeacherStates(hidden.astype(jnp.float32))
        table, cap = head_table(self._params, self._shape), self._shape.final_logit_softcapping
        static = (settings.vocab_size, settings.temperature, settings.tokens_per_position)
        if settings.kind == "top":
            return TopTargets(*_top(hidden, table, cap, *static))
        keys = jax.vmap(lambda index: jax.random.fold_in(self._key, index))(jnp.asarray(indices, jnp.uint32))
        return DrawnTargets(_drawn(hidden, table, keys, cap, *static))


_hidden = jax.jit(partial(completion_hidden, constant=True), static_argnames=("config",))


@partial(jax.jit, static_argnames=("cap", "vocab_size", "temperature", "k"))
def _top(
    hidden: Float[Array, "B N D"],
    table: Float[Array, "V D"],
    cap: float | None,
    vocab_size: int,
    temperature: float,
    k: int,
) -> tuple[Int[Array, "B N K"], Float[Array, "B N K"]]:
    """The likeliest tokens of each position with their log-probabilities, falling."""

    def keep(hidden: Array, _: Array) -> tuple[Array, Array]:
        logits = head_logits(hidden, table, cap)[..., :vocab_size] / temperature
        values, tokens = jax.lax.top_k(logits, k)
        return tokens, values - jax.nn.logsumexp(logits, axis=-1, keepdims=True)

    return _by_positions(keep, hidden, jnp.zeros((*hidden.shape[:2], 0)), vocab_size)  # type: ignore[no-any-return]  # a tree like keep's


@partial(jax.jit, static_argnames=("cap", "vocab_size", "temperature", "k"))
def _drawn(
    hidden: Float[Array, "B N D"],
    table: Float[Array, "V D"],
    keys: Array,
    cap: float | None,
    vocab_size: int,
    temperature: float,
    k: int,
) -> Int[Array, "B N K"]:
    """Tokens drawn with replacement; row b's depend on the key b and its own hidden states."""

    def draw(hidden: Array, uniforms: Array) -> Array:
        probs = jax.nn.softmax(head_logits(hidden, table, cap)[..., :vocab_size] / temperature, axis=-1)
        rows = probs.reshape(-1, vocab_size)  # [B·n, V]
        once = jax.vmap(invert_cdf, in_axes=(None, 1), out_axes=1)  # sums the blocks once for all K
        return once(rows, uniforms.reshape(-1, k)).reshape(uniforms.shape)

    uniforms = jax.vmap(lambda key: jax.random.uniform(key, (hidden.shape[1], k)))(keys)  # [B, N, K]
    return _by_positions(draw, hidden, uniforms, vocab_size)  # type: ignore[no-any-return]  # a tree like keep's


def _by_positions(
    keep: Callable[[Array, Array], Any], hidden: Float[Array, "B N D"], extra: Float[Array, "B N K"], vocab_size: int
) -> Any:
    """keep(hidden, extra) a few positions at a time, so that the logits of a batch are never in memory."""
    B, N, _ = hidden.shape
    n = chunk_positions(B, N, vocab_size)
    count = -(-N // n)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, count * n - N), (0, 0)))
        return jnp.moveaxis(padded.reshape(B, count, n, -1), 1, 0)  # [count, B, n, ...]

    def join(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 1).reshape(B, count * n, -1)[:, :N]

    return jax.tree.map(join, jax.lax.map(lambda part: keep(*part), (split(hidden), split(extra))))
