"""Sequence-level distillation's data: the teacher answers the prompts of a data set, once, to a JSONL.

```
out.jsonl               {"prompt": ..., "completion": ..., "line": of the data} or {"messages": [...], "line": ...}
out.jsonl.parts/        while it is being written: parts.json, part_00000.jsonl, ...; gone when it is whole
out.provenance.json     teacher, data, sampling and hashes; how many answers were written and dropped
```
Students learn the file by `attar distill --method sft`. An answer that reached the longest completion without an end is
dropped: a student would learn to stop where it was cut.

References:
  Kim and Rush, 2016, "Sequence-Level Knowledge Distillation", arXiv:1606.07947.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from attar.distill.batches import Batch, Buckets, choose_buckets
from attar.distill.data import DataSet, Example, Limits, PromptFormat, load_mixture
from attar.distill.models import params_fingerprint
from attar.distill.part_folder import PartError, open_parts, write_index, write_part
from attar.distill.records import Record, file_sha256, find_files, read_records
from attar.distill.rollout import sample_batch
from attar.distill.step import ComputeDtype, cast_matrices
from attar.distill.target_folder import examples_sha256
from attar.distill.token_scores import example_batches
from attar.engine.checkpoint import Model, load_model
from attar.engine.sampling import SamplingParams


@dataclass(frozen=True)
class WriteConfig:
    """Who answers what, and how. Lengths are in tokens.

    Attributes:
      data: Files, or glob patterns of such, whose prompts are answered; completions in them are not read.
      teacher: Folder in Hugging Face layout, or `.gguf` file.
      temperature: Of the answers; 0 is greedy.
      top_k, top_p: See `SamplingParams`.
      samples: Answers to each prompt.
      max_new_tokens: Longest answer.
      max_prompt_tokens: Longest prompt allowed; None is what the teacher's context leaves.
      prompt_format: See `data.PromptFormat`; the file is to be learnt under the same.
      batch_size: Rows answered at a time.
      part_examples: Prompts whose answers are kept together: what a kill costs.
      compute_dtype: Of the teacher's products.
      seed: Of the answers.
    """

    data: tuple[str, ...]
    teacher: str
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    samples: int = 1
    max_new_tokens: int = 128
    max_prompt_tokens: int | None = None
    prompt_format: PromptFormat = "auto"
    batch_size: int = 16
    part_examples: int = 256
    compute_dtype: ComputeDtype = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        SamplingParams(self.temperature, self.top_k, self.top_p)
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"samples must be 1 where answers are greedy, for all would be equal, got {self.samples}")


def write_completions(
    config: WriteConfig, out: Path, on_examples: Callable[[int, int], None] = lambda done, of: None
) -> dict[str, Any]:
    """Writes, or goes on writing, the teacher's answers.

    Args:
      config: What to do; on going on it must equal the one that the parts were begun under.
      out: The JSONL; one that is there is not written over.
      on_examples: Hears how many prompts are answered, of how many.

    Returns:
      What stands in the provenance.

    Raises:
      PartError: If the file is there, cannot be written, or its parts were begun under other settings.
      DataError: If the data cannot be used.
      CheckpointError: If the teacher cannot be read.
    """
    folder = out.with_name(out.name + ".parts")
    if out.exists() and not folder.exists():  # with parts beside it, it was stopped at the very end
        raise PartError(f"{out}: is there already; remove it or choose another name")
    model = load_model(Path(config.teacher))
    limits = Limits(_prompt_tokens(config, model), config.max_new_tokens, needs_completion=False)
    data = load_mixture(config.data, None, model.tokenizer, limits, config.prompt_format)
    prompts = _last_turns(data, config)
    settings = {
        **{name: value for name, value in asdict(config).items() if name not in ("data", "teacher")},
        "teacher_fingerprint": params_fingerprint(model.params),
        "tokenizer_fingerprint": model.tokenizer.fingerprint(),
        "prompts_sha256": examples_sha256([example for example, _ in prompts]),
        "data_sha256": data.sha256,
        "prompts": len(prompts),
    }
    told = {"teacher": config.teacher, "data": list(config.data)}
    with open_parts(folder, "parts.json", {**settings, **told}, frozenset(told)):
        writer = _Writer(config, model, prompts)
        parts = []
        for begin in range(0, len(prompts), config.part_examples):
            parts.append(folder / f"part_{begin // config.part_examples:05d}.jsonl")
            if not parts[-1].exists():
                write_part(parts[-1], "".join(writer.lines(begin, on_examples)))
        on_examples(len(prompts), len(prompts))
        provenance = _join(parts, out, len(prompts) * config.samples)
        index = {**settings, **told, **provenance}
        write_index(out.with_suffix(".provenance.json"), index)
    shutil.rmtree(folder)
    return index


def _prompt_tokens(config: WriteConfig, model: Model) -> int:
    room = model.config.max_position_embeddings - config.max_new_tokens
    if room < 1:
        raise PartError(
            f"max_new_tokens must be below the context of {model.config.max_position_embeddings} tokens, "
            f"got {config.max_new_tokens}; lower it"
        )
    return room if config.max_prompt_tokens is None else min(room, config.max_prompt_tokens)


def _last_turns(data: DataSet, config: WriteConfig) -> list[tuple[Example, Record]]:
    """The prompts with the entries that they come from; of a conversation its last assistant turn is answered."""
    records = [record for file in find_files(config.data) for record in read_records(file, "file")]
    turns = [max(1, sum(message["role"] == "assistant" for message in record.messages)) for record in records]
    return [(data.examples[last - 1], record) for last, record in zip(np.cumsum(turns), records, strict=True)]


def _join(parts: Sequence[Path], out: Path, asked: int) -> dict[str, Any]:
    """Puts the parts together, and counts what was written and what was dropped."""
    text = "".join(part.read_text("utf-8") for part in parts)
    if not text:
        raise PartError(f"{out}: no answer came to an end; raise max_new_tokens and choose another name")
    write_part(out, text)
    written = text.count("\n")
    return {"written": written, "dropped_unfinished": asked - written, "sha256": file_sha256(out)}


class _Writer:
    """Answers prompts; what one is answered depends on itself, its place in its part and the seed."""

    def __init__(self, config: WriteConfig, model: Model, prompts: Sequence[tuple[Example, Record]]) -> None:
        self._config = config
        self._params = cast_matrices(model.params, config.compute_dtype)
        self._shape, self._tokenizer = model.config, model.tokenizer
        self._prompts = prompts
        examples = tuple(example for example, _ in prompts)
        limits = Limits(max(len(example.prompt) for example in examples), config.max_new_tokens)
        self._buckets: Buckets = choose_buckets(DataSet(examples, limits, 0, ""), 3, 1)

    def lines(self, begin: int, on_examples: Callable[[int, int], None]) -> list[str]:
        """JSONL of one part, prompt by prompt in the order of the data."""
        members = self._prompts[begin : begin + self._config.part_examples]
        answers: list[list[str]] = [[] for _ in members]
        examples = [example for example, _ in members]
        batch_size = min(self._config.batch_size, len(examples))
        done = begin
        for number, (batch, rows) in enumerate(example_batches(examples, batch_size, self._buckets)):
            for sample in range(self._config.samples):
                key = jax.random.key(self._config.seed)
                for value in (begin, number, sample):
                    key = jax.random.fold_in(key, value)
                self._answer(batch, rows, key, answers)
            done += len(rows)
            on_examples(done, len(self._prompts))
        texts = zip(members, answers, strict=True)
        return [_line(record, text) for (_, record), found in texts for text in found]

    def _answer(self, batch: Batch, rows: list[int], key: jax.Array, answers: list[list[str]]) -> None:
        """Adds one answer to each prompt, if it came to an end."""
        config = self._config
        answered = sample_batch(
            self._params,
            self._shape,
            batch,
            max_new_tokens=config.max_new_tokens,
            sampling=SamplingParams(config.temperature, config.top_k, config.top_p),
            eos_token_ids=self._tokenizer.eos_token_ids,
            key=key,
        )
        tokens, lengths = np.asarray(answered.completions), np.asarray(answered.completion_lengths)
        for i, row in enumerate(rows):
            *said, last = tokens[i, : lengths[i]].tolist()
            if self._tokenizer.is_end(last):
                answers[row].append(self._tokenizer.decode(said))


def _line(record: Record, answer: str) -> str:
    if not record.messages:
        value: dict[str, Any] = {"prompt": record.prompt, "completion": answer}
    else:
        last = max(i for i, message in enumerate(record.messages) if message["role"] == "assistant")
        value = {"messages": [*record.messages[:last], {"role": "assistant", "content": answer}]}
    return json.dumps({**value, "line": record.line}, ensure_ascii=False) + "\n"
