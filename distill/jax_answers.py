"""What a JAX model writes to held-out prompts: greedily, drawn at a temperature, or from a given beginning on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from attar.distill.batches import Batch, Buckets
from attar.distill.calculator_decoding import answer_with_calculator
from attar.distill.data import Example
from attar.distill.rollout import sample_batch
from attar.distill.token_scores import Rows, example_batches
from attar.engine.config import ModelConfig
from attar.engine.generate import bucket_size
from attar.engine.sampling import GREEDY, SamplingParams
from attar.engine.sharding import to_host
from attar.engine.tokenizer import Tokenizer
from attar.engine.transformer import Params


@dataclass(frozen=True)
class Writer:
    """A model that answers.

    Attributes:
      params, config: Weights and shape.
      tokenizer: Of the model.
      batch_size: Rows worked on at a time.
      max_new_tokens: Longest answer.
      seed: Of drawn answers.
    """

    params: Params
    config: ModelConfig
    tokenizer: Tokenizer
    batch_size: int
    max_new_tokens: int
    seed: int = 0

    def answer(self, examples: Sequence[Example], members: Sequence[int], buckets: Buckets) -> dict[int, str]:
        """Greedy answers to the members by their index, blanks at their ends included."""
        batches = example_batches(examples, self.batch_size, buckets, members)
        return self.decode((self.complete(batch, GREEDY, 0), rows) for batch, rows in batches)

    def answer_with_calculator(self, examples: Sequence[Example], answers: Sequence[str]) -> list[str]:
        """The greedy answers to the examples as they are with a calculator at hand."""

        def go_on(indices: Sequence[int], begun: Sequence[str]) -> list[str]:
            return self._go_on([examples[i] for i in indices], begun)

        return answer_with_calculator(answers, go_on)

    def _go_on(self, examples: Sequence[Example], begun: Sequence[str]) -> list[str]:
        """What is written greedily after each beginning of an answer; with it, it keeps to the longest answer."""
        heads = [np.array(self.tokenizer.encode(text), np.int32) for text in begun]
        prompts = [np.concatenate([example.prompt, head]) for example, head in zip(examples, heads, strict=True)]
        longest, context = max(map(len, prompts)), self.config.max_position_embeddings
        rounded = bucket_size(longest)  # few widths, so that little is compiled
        width = rounded if rounded + self.max_new_tokens <= context else longest
        room = min(self.max_new_tokens, context - width)
        rest = [""] * len(examples)
        if room < 1:
            return rest
        none = np.empty(0, np.int32)
        rows = [replace(e, prompt=prompt, completion=none) for e, prompt in zip(examples, prompts, strict=True)]
        within = replace(self, max_new_tokens=room)
        for batch, members in example_batches(rows, self.batch_size, Buckets((width,), (1,))):
            drawn = within.complete(batch, GREEDY, 0)
            tokens, lengths = to_host(drawn.completions), to_host(drawn.completion_lengths)
            for i, row in enumerate(members):
                left = min(int(lengths[i]), max(self.max_new_tokens - len(heads[row]), 0))
                rest[row] = self.tokenizer.decode(tokens[i, :left].tolist())
        return rest

    def complete(self, batch: Batch, sampling: SamplingParams, index: int) -> Batch:
        """The batch with the model's completions; equal seeds and indices draw by the same random numbers."""
        return sample_batch(
            self.params,
            self.config,
            batch,
            max_new_tokens=self.max_new_tokens,
            sampling=sampling,
            eos_token_ids=self.tokenizer.eos_token_ids,
            key=jax.random.fold_in(jax.random.key(self.seed), index),
        )

    def decode(self, answers: Iterable[tuple[Batch, Rows]]) -> dict[int, str]:
        """Texts of completed batches by the example's index."""
        texts = {}
        for batch, rows in answers:
            tokens, lengths = to_host(batch.completions), to_host(batch.completion_lengths)
            for i, row in enumerate(rows):
                texts[row] = self.tokenizer.decode(tokens[i, : lengths[i]].tolist())
        return texts
