"""Reads prompts and completions from JSONL and turns them into token ids with completion-only losses.

One JSON object a line, in one of three forms:
    {"prompt": "...", "completion": "..."}
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}
    {"question": "...", "answer": "..."}
Of a conversation every assistant turn becomes one example, whose prompt is the conversation up to it: the same
tokens are learnt as with a mask over the whole conversation, and each turn can also be sampled on-policy.
The third is GSM8K's form, which becomes a prompt and a completion by `attar.distill.answers`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from attar.distill.answers import answer_completion, question_prompt
from attar.engine.chat_template import ChatTemplateError, render_chat
from attar.engine.tokenizer import Tokenizer

PromptFormat = Literal["auto", "chat", "plain"]
"""`chat` renders prompts through the model's chat template, `plain` takes them as they are, and `auto` is `chat`
where the model has a template and `plain` elsewhere."""

Message = dict[str, str]


class DataError(ValueError):
    """Training data that cannot be used; the message names the file and, where there is one, the line."""


@dataclass(frozen=True)
class Record:
    """One line of the file as written: either a prompt with its completion, or a conversation."""

    line: int
    prompt: str = ""
    completion: str | None = None
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Example:
    """One prompt and its completion as token ids.

    Attributes:
      line: Line of the file, from 1.
      prompt: int32 [P], at least one token.
      completion: int32 [N], its last token an end of sequence unless it was cut; empty where the data has none.
      prompt_text: The prompt as the model reads it.
      reference: The completion's own text, without template parts.
    """

    line: int
    prompt: NDArray[np.int32]
    completion: NDArray[np.int32]
    prompt_text: str
    reference: str


@dataclass(frozen=True)
class Limits:
    """Lengths in tokens that examples must keep, and whether each needs a completion.

    Attributes:
      prompt_tokens: A longer prompt is an error.
      completion_tokens: A longer completion is cut, and then ends without an end of sequence.
    """

    prompt_tokens: int
    completion_tokens: int
    needs_completion: bool = True


@dataclass(frozen=True)
class DataSet:
    """Examples of one file.

    Attributes:
      limits: What the examples keep to.
      num_cut: Completions that were cut to the limit.
      sha256: Hash of the file's bytes.
    """

    examples: tuple[Example, ...]
    limits: Limits
    num_cut: int
    sha256: str


def load_examples(
    path: Path,
    tokenizer: Tokenizer,
    limits: Limits,
    prompt_format: PromptFormat = "auto",
    max_examples: int | None = None,
) -> DataSet:
    """Reads a JSONL file and tokenises it.

    Args:
      path: The file.
      tokenizer: Of the model that will be trained.
      limits: Length limits in tokens.
      prompt_format: How prompts become text; see `PromptFormat`.
      max_examples: Stops after this many examples; None takes all.

    Raises:
      DataError: If the file cannot be read, holds no examples, or a line is malformed or too long.
    """
    content = _read_bytes(path)
    encoder = _Encoder(path, tokenizer, limits, prompt_format)
    examples: list[Example] = []
    for record in parse_records(path, content):
        if record.completion is None and not record.messages and limits.needs_completion:
            raise DataError(f"{path}:{record.line}: lacks a 'completion' (or 'answer'), which this method trains on")
        examples.extend(encoder.encode(record))
        if max_examples is not None and len(examples) >= max_examples:
            break
    if not examples:
        raise DataError(f"{path}: holds no examples; expected one JSON object a line")
    return DataSet(tuple(examples[:max_examples]), limits, encoder.num_cut, hashlib.sha256(content).hexdigest())


def parse_records(path: Path, content: bytes) -> Iterator[Record]:
    """Checks and yields the lines of a JSONL file; blank lines are skipped.

    Raises:
      DataError: If a line is not UTF-8, not a JSON object, or lacks or misuses a key.
    """
    for number, raw in enumerate(content.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            value = json.loads(raw)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number}: is not UTF-8 text (byte {error.start} of the line)") from None
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: is not valid JSON: {error.msg} (column {error.colno})") from None
        yield _record(path, number, value)


def _record(path: Path, line: int, value: Any) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{path}:{line}: must be a JSON object, got {type(value).__name__}")
    if "messages" in value:
        return Record(line, messages=_messages(path, line, value["messages"]))
    if "prompt" in value:
        prompt, completion = _strings(path, line, value, ("prompt", "completion"))
        return Record(line, prompt, completion)
    if "question" in value:
        question, answer = _strings(path, line, value, ("question", "answer"))
        return Record(line, question_prompt(question), None if answer is None else answer_completion(answer))
    forms = "'prompt' and 'completion', or 'messages', or 'question' and 'answer'"
    raise DataError(f"{path}:{line}: must have {forms}; got {sorted(value)}")


def _strings(path: Path, line: int, value: dict[str, Any], keys: tuple[str, str]) -> tuple[str, str | None]:
    """The strings under both keys, of which the second may be absent."""
    for key in keys:
        if key in value and not isinstance(value[key], str):
            raise DataError(f"{path}:{line}: {key!r} must be a string, got {type(value[key]).__name__}")
    return value[keys[0]], value.get(keys[1])


def _messages(path: Path, line: int, value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{path}:{line}: 'messages' must be a list of at least one message")
    for message in value:
        if not (
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
        ):
            raise DataError(f"{path}:{line}: each message must have the strings 'role' and 'content', got {message!r}")
    if all(message["role"] != "assistant" for message in value):
        raise DataError(f"{path}:{line}: 'messages' must hold an assistant turn to learn from")
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


class _Encoder:
    """Turns records into token ids for one tokenizer."""

    def __init__(self, path: Path, tokenizer: Tokenizer, limits: Limits, prompt_format: PromptFormat) -> None:
        if not tokenizer.eos_token_ids:
            raise DataError(f"{path}: the tokenizer names no end-of-sequence token, so completions cannot be ended")
        if prompt_format == "chat" and tokenizer.chat_template is None:
            raise DataError(f"{path}: the format 'chat' needs a chat template, which the model lacks; use 'plain'")
        self._path = path
        self._tokenizer = tokenizer
        self._limits = limits
        self._chat = prompt_format != "plain" and tokenizer.chat_template is not None
        self.num_cut = 0

    def encode(self, record: Record) -> Iterator[Example]:
        if record.messages and not self._chat:
            raise DataError(f"{self._path}:{record.line}: 'messages' need a chat template, which is absent or not used")
        if record.messages:
            for turn, message in enumerate(record.messages):
                if message["role"] == "assistant":
                    yield self._encode_turn(record.line, record.messages[:turn], message["content"])
        elif self._chat:
            yield self._encode_turn(record.line, ({"role": "user", "content": record.prompt},), record.completion)
        else:
            yield self._example(record.line, record.prompt, record.completion, record.completion, add_special=True)

    def _encode_turn(self, line: int, before: tuple[Message, ...], answer: str | None) -> Example:
        prompt = self._render(line, before, add_generation_prompt=True)
        if answer is None:
            return self._example(line, prompt, None, None, add_special=False)
        whole = self._render(line, (*before, {"role": "assistant", "content": answer}), add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise DataError(
                f"{self._path}:{line}: the chat template writes past turns differently from the prompt that asks for "
                "them, so a completion cannot be told apart; render the text yourself and use the format 'plain'"
            )
        return self._example(line, prompt, whole[len(prompt) :], answer, add_special=False)

    def _render(self, line: int, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
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
            raise DataError(f"{self._path}:{line}: {error}") from None

    def _example(
        self, line: int, prompt: str, completion: str | None, reference: str | None, *, add_special: bool
    ) -> Example:
        ids = self._tokenizer.encode(prompt, add_special=add_special)
        if not ids:
            raise DataError(
                f"{self._path}:{line}: the prompt has no tokens, so nothing precedes the first completion token"
            )
        if len(ids) > self._limits.prompt_tokens:
            raise DataError(
                f"{self._path}:{line}: the prompt must have at most {self._limits.prompt_tokens} tokens (the context "
                f"less the completion), got {len(ids)}; shorten it or use a model with a longer context"
            )
        target = [] if completion is None else self._end(self._tokenizer.encode(completion))
        if len(target) > self._limits.completion_tokens:
            target = target[: self._limits.completion_tokens]
            self.num_cut += 1
        return Example(line, np.array(ids, np.int32), np.array(target, np.int32), prompt, (reference or "").strip())

    def _end(self, ids: list[int]) -> list[int]:
        """Ids up to the first end of sequence, which is appended where there is none."""
        ends = set(self._tokenizer.eos_token_ids)
        for index, token in enumerate(ids):
            if token in ends:
                return ids[: index + 1]  # what a template writes after it is never sampled
        return [*ids, self._tokenizer.eos_token_ids[0]]


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
