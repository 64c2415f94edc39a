"""Training and held-out examples as token ids, in which only the completion is learnt.

Of a conversation every assistant turn becomes one example, whose prompt is the conversation up to it: the same
tokens are learnt as with a mask over the whole conversation, and each turn can also be sampled on-policy.

A document of plain text becomes windows in which every token but the document's first is counted once:

    tokens 4, overlap 1    [B 1 2 3][3 4 5 6][6 7 E]     B, 3 and 6 are read as context: an example's prompt
    tokens 4, overlap 2    [B 1 2 3][2 3 4 5][4 5 6 7]...

The first token is the beginning of sequence where the model's tokenizer puts one, so that the text counts whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from attar.distill.examples import Example, StoredExamples, TextSize, count_texts
from attar.distill.records import DataError, Documents, Message, Record, file_sha256, find_files, read_records
from attar.engine.chat_template import ChatTemplateError, render_chat
from attar.engine.tokenizer import Tokenizer

__all__ = ["DataError", "DataFile", "DataSet", "Example", "Limits", "PromptFormat", "load_examples", "load_mixture"]

STORED_BYTES = 1 << 28
"""Files of more bytes together have their examples kept on the disk (`StoredExamples`)."""

PromptFormat = Literal["auto", "chat", "plain"]
"""`chat` renders prompts through the model's chat template, `plain` takes them as they are, and `auto` is `chat`
where the model has a template and `plain` elsewhere."""

TEXT_WINDOW = 512
"""Tokens of a window of text where nothing else is asked for: most of what a small model learns of context."""


@dataclass(frozen=True)
class Windows:
    """How a document of plain text is cut; see the module's docstring.

    Attributes:
      tokens: Of a window, its context included; at least 2.
      overlap: Last tokens of a window that the next one begins with, as context; from 1 to `tokens` - 1.
      ended: Whether a document ends in an end of sequence, which is learnt.

    Raises:
      ValueError: If the lengths break these rules.
    """

    tokens: int
    overlap: int = 1
    ended: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.overlap < self.tokens:
            raise ValueError(f"overlap must be at least 1 and below the window, got {self.overlap} and {self.tokens}")


@dataclass(frozen=True)
class Limits:
    """Lengths in tokens that examples must keep, and whether each needs a completion.

    Attributes:
      prompt_tokens: A longer prompt is an error.
      completion_tokens: A longer completion is cut, and then ends without an end of sequence.
      windows: Of plain text, whose lengths are theirs alone; None refuses plain text.
    """

    prompt_tokens: int
    completion_tokens: int
    needs_completion: bool = True
    windows: Windows | None = None


@dataclass(frozen=True)
class DataFile:
    """One file that was read: the hash of its bytes and how many examples it gave."""

    sha256: str
    num_examples: int


@dataclass(frozen=True)
class DataSet:
    """Examples of one or several files, file by file.

    Attributes:
      limits: What the examples keep to.
      num_cut: Completions that were cut to the limit.
      sha256: Hash of the file's bytes; of several files, of their hashes.
      files: In the order in which they were read.
      weights: Of each file's examples in a mixture, as they were asked for; None mixes by size.
    """

    examples: Sequence[Example]
    limits: Limits
    num_cut: int
    sha256: str
    files: tuple[DataFile, ...] = ()
    weights: tuple[float, ...] | None = None

    @property
    def num_texts(self) -> int:
        """Examples that are windows of plain text."""
        return count_texts(self.examples)


def load_examples(
    path: Path,
    tokenizer: Tokenizer,
    limits: Limits,
    prompt_format: PromptFormat = "auto",
    max_examples: int | None = None,
    documents: Documents = "file",
) -> DataSet:
    """Reads a file of any kind in `records` and tokenises it.

    Args:
      path: The file.
      tokenizer: Of the model that will be trained.
      limits: Length limits in tokens.
      prompt_format: How prompts become text; see `PromptFormat`.
      max_examples: Stops after this many examples; None takes all.
      documents: What one document of a text file is.

    Raises:
      DataError: If the file cannot be read, holds no examples, or an entry is malformed or too long.
    """
    sha256 = file_sha256(path)
    encoder = _Encoder(path, tokenizer, limits, prompt_format)
    examples = tuple(islice(encoder.encode_all(read_records(path, documents)), max_examples))
    if not examples:
        raise DataError(_empty(path))
    return DataSet(examples, limits, encoder.num_cut, sha256, (DataFile(sha256, len(examples)),))


def load_mixture(
    patterns: Sequence[str],
    weights: Sequence[float] | None,
    tokenizer: Tokenizer,
    limits: Limits,
    prompt_format: PromptFormat = "auto",
    documents: Documents = "file",
) -> DataSet:
    """Reads all files that paths and glob patterns name; examples of more than `STORED_BYTES` are kept on the disk.

    Args:
      patterns: Paths or glob patterns.
      weights: Of each pattern in the mixture; its files share the weight by their size. None mixes all by size.
      tokenizer, limits, prompt_format, documents: As of `load_examples`.

    Raises:
      DataError: As `load_examples`, or if a pattern names no file.
    """
    files_of = [find_files([pattern]) for pattern in patterns]
    paths = [path for files in files_of for path in files]
    examples = StoredExamples() if sum(path.stat().st_size for path in paths) > STORED_BYTES else list[Example]()
    read: list[DataFile] = []
    num_cut = 0
    for path in paths:
        encoder, before, sha256 = _Encoder(path, tokenizer, limits, prompt_format), len(examples), file_sha256(path)
        examples.extend(encoder.encode_all(read_records(path, documents)))
        if len(examples) == before:
            raise DataError(_empty(path))
        read.append(DataFile(sha256, len(examples) - before))
        num_cut += encoder.num_cut
    hashes = [file.sha256 for file in read]
    sha256 = hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    shares = None if weights is None else _file_weights([len(files) for files in files_of], read, weights)
    kept = examples if isinstance(examples, StoredExamples) else tuple(examples)
    return DataSet(kept, limits, num_cut, sha256, tuple(read), shares)


def _file_weights(files_of: Sequence[int], read: Sequence[DataFile], weights: Sequence[float]) -> tuple[float, ...]:
    """The weight of each file: its pattern's, divided among the pattern's files by their examples."""
    rest = iter(read)
    parts = [[file.num_examples for file in islice(rest, count)] for count in files_of]
    return tuple(weight * size / sum(part) for weight, part in zip(weights, parts, strict=True) for size in part)


def _empty(path: Path) -> str:
    return f"{path}: holds no examples; expected {'text' if path.suffix == '.txt' else 'one JSON object a line'}"


class _Encoder:
    """Turns records into token ids for one tokenizer."""

    def __init__(self, path: Path, tokenizer: Tokenizer, limits: Limits, prompt_format: PromptFormat) -> None:
        if not tokenizer.eos_token_ids:
            raise DataError(f"{path}: the tokenizer names no end-of-sequence token, so completions cannot be ended")
        if prompt_format == "chat" and tokenizer.chat_template is None:
            raise DataError(f"{path}: the format 'chat' needs a chat template, which the model lacks; use 'plain'")
        self._tokenizer = tokenizer
        self._limits = limits
        self._chat = prompt_format != "plain" and tokenizer.chat_template is not None
        self.num_cut = 0

    def encode_all(self, records: Iterable[Record]) -> Iterator[Example]:
        for record in records:
            yield from self.encode(record)

    def encode(self, record: Record) -> Iterator[Example]:
        if record.text is not None:
            yield from self._encode_text(record, record.text)
        elif record.messages:
            if not self._chat:
                raise DataError(f"{record.place}: 'messages' need a chat template, which is absent or not used")
            for turn, message in enumerate(record.messages):
                if message["role"] == "assistant":
                    yield self._encode_turn(record, record.messages[:turn], message["content"])
        elif record.completion is None and self._limits.needs_completion:
            raise DataError(f"{record.place}: lacks a 'completion' (or 'answer'), which this method trains on")
        elif self._chat:
            yield self._encode_turn(record, ({"role": "user", "content": record.prompt},), record.completion)
        else:
            yield self._example(record, record.prompt, record.completion, record.completion, add_special=True)

    def _encode_text(self, record: Record, text: str) -> Iterator[Example]:
        windows = self._limits.windows
        if windows is None:
            raise DataError(f"{record.place}: is plain text, where prompts are needed")
        tokenizer = self._tokenizer
        begin_of_text = [tokenizer.bos_token_id] if tokenizer.add_bos and tokenizer.bos_token_id is not None else []
        ids = [*begin_of_text, *tokenizer.encode(text), *(tokenizer.eos_token_ids[:1] if windows.ended else ())]
        start = 1  # of what is counted next
        while start < len(ids):
            begin = max(start - windows.overlap, 0)
            context, counted = ids[begin:start], ids[start : begin + windows.tokens]
            arrays = np.array(context, np.int32), np.array(counted, np.int32)
            yield Example(record.line, *arrays, "", tokenizer.decode(counted), self._text_size(context, counted))
            start += len(counted)

    def _text_size(self, context: list[int], counted: list[int]) -> TextSize:
        ends = self._tokenizer.eos_token_ids[:1]
        pieces = [self._tokenizer.token_bytes(token) for token in counted if token not in ends]
        before, text = self._tokenizer.decode(context), self._tokenizer.decode([*context, *counted])
        return TextSize(sum(map(len, pieces)), len(text.split()) - len(before.split()))

    def _encode_turn(self, record: Record, before: tuple[Message, ...], answer: str | None) -> Example:
        prompt = self._render(record, before, add_generation_prompt=True)
        if answer is None:
            return self._example(record, prompt, None, None, add_special=False)
        whole = self._render(record, (*before, {"role": "assistant", "content": answer}), add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise DataError(
                f"{record.place}: the chat template writes past turns differently from the prompt that asks for "
                "them, so a completion cannot be told apart; render the text yourself and use the format 'plain'"
            )
        return self._example(record, prompt, whole[len(prompt) :], answer, add_special=False)

    def _render(self, record: Record, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        tokenizer = self._tokenizer
        try:
            return render_chat(
                tokenizer.chat_template or "",
                messages,
                add_generation_prompt=add_generation_prompt,
                bos_token=tokenizer.token_text(tokenizer.bos_token_id),
                eos_token=tokenizer.token_text(tokenizer.eos_token_ids[0]),
            )
        except ChatTemplateError as error:
            raise DataError(f"{record.place}: {error}") from None

    def _example(
        self, record: Record, prompt: str, completion: str | None, reference: str | None, *, add_special: bool
    ) -> Example:
        ids = self._tokenizer.encode(prompt, add_special=add_special)
        if not ids:
            raise DataError(f"{record.place}: the prompt has no tokens, so nothing precedes the first completion token")
        if len(ids) > self._limits.prompt_tokens:
            raise DataError(
                f"{record.place}: the prompt must have at most {self._limits.prompt_tokens} tokens (the context "
                f"less the completion), got {len(ids)}; shorten it or use a model with a longer context"
            )
        target = [] if completion is None else self._end(self._tokenizer.encode(completion))
        if len(target) > self._limits.completion_tokens:
            target = target[: self._limits.completion_tokens]
            self.num_cut += 1
        tokens = np.array(ids, np.int32), np.array(target, np.int32)
        return Example(record.line, *tokens, prompt, (reference or "").strip())

    def _end(self, ids: list[int]) -> list[int]:
        """Ids up to the first end of sequence, which is appended where there is none."""
        ends = set(self._tokenizer.eos_token_ids)
        for index, token in enumerate(ids):
            if token in ends:
                return ids[: index + 1]  # what a template writes after it is never sampled
        return [*ids, self._tokenizer.eos_token_ids[0]]
