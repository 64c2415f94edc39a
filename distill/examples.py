"""Examples as token ids, and a sequence of them that does not hold them in memory."""

from __future__ import annotations

import os
import weakref
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray


class TextSize(NamedTuple):
    """Size of a piece of text in UTF-8 bytes and in words parted by blanks; a word counts where it begins."""

    num_bytes: int
    num_words: int


@dataclass(frozen=True)
class Example:
    """One prompt and its completion as token ids.

    Attributes:
      line: Line of the file, from 1.
      prompt: int32 [P], at least one token; of a window of text its context.
      completion: int32 [N], its last token an end of sequence unless it was cut; empty where the data has none.
      prompt_text: The prompt as the model reads it.
      reference: The completion's own text, without template parts.
      text_size: Of the text that a window of plain text counts; None where the example is a prompt that is answered.
    """

    line: int
    prompt: NDArray[np.int32]
    completion: NDArray[np.int32]
    prompt_text: str
    reference: str
    text_size: TextSize | None = None


class _Entry(NamedTuple):
    """Where an example stands in the files: offsets and lengths in tokens and bytes; sizes are -1 of a prompt."""

    line: int
    first_token: int
    prompt_tokens: int
    completion_tokens: int
    first_byte: int
    prompt_bytes: int
    reference_bytes: int
    text_bytes: int
    text_words: int


class StoredExamples(Sequence[Example]):
    """Examples in unnamed temporary files, which end with the process; memory holds nine numbers of each.

    They are read back one at a time and equal what was given. The files lie where TMPDIR says.

    Raises:
      OSError: If they cannot be written.
    """

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        self._tokens, self._texts = TemporaryFile(), TemporaryFile()  # noqa: SIM115 - they live as long as the sequence
        for file in (self._tokens, self._texts):
            weakref.finalize(self, file.close)
        self._index = array("q")
        self._num_tokens = self._num_bytes = 0
        self.extend(examples)

    def extend(self, examples: Iterable[Example]) -> None:
        """Appends examples."""
        for example in examples:
            self._append(example)
        self._tokens.flush()
        self._texts.flush()

    def _append(self, example: Example) -> None:
        prompt, reference = example.prompt_text.encode(), example.reference.encode()
        lengths = len(example.prompt), len(example.completion)
        size = example.text_size or TextSize(-1, -1)
        texts = self._num_bytes, len(prompt), len(reference)
        self._index.extend(_Entry(example.line, self._num_tokens, *lengths, *texts, *size))
        self._tokens.write(example.prompt.tobytes() + example.completion.tobytes())
        self._texts.write(prompt + reference)
        self._num_tokens += sum(lengths)
        self._num_bytes += len(prompt) + len(reference)

    def __len__(self) -> int:
        return len(self._index) // len(_Entry._fields)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"example must be below {len(self)}, got {index}")
        width = len(_Entry._fields)
        first = index % len(self) * width
        entry = _Entry(*self._index[first : first + width])
        num_tokens = entry.prompt_tokens + entry.completion_tokens
        tokens = np.frombuffer(os.pread(self._tokens.fileno(), 4 * num_tokens, 4 * entry.first_token), np.int32)
        num_bytes = entry.prompt_bytes + entry.reference_bytes
        text = os.pread(self._texts.fileno(), num_bytes, entry.first_byte)
        return Example(
            entry.line,
            tokens[: entry.prompt_tokens],
            tokens[entry.prompt_tokens :],
            text[: entry.prompt_bytes].decode(),
            text[entry.prompt_bytes :].decode(),
            None if entry.text_bytes < 0 else TextSize(entry.text_bytes, entry.text_words),
        )

    def columns(self) -> NDArray[np.int64]:
        """The numbers of all examples, [E, 9], in the order of `_Entry`."""
        return np.array(self._index, np.int64).reshape(-1, len(_Entry._fields))


def example_lengths(examples: Sequence[Example]) -> NDArray[np.int64]:
    """Tokens of each example's prompt and completion, [E, 2]."""
    if isinstance(examples, StoredExamples):
        return examples.columns()[:, 2:4]
    return np.array([(len(e.prompt), len(e.completion)) for e in examples], np.int64).reshape(-1, 2)


def count_texts(examples: Sequence[Example]) -> int:
    """How many of the examples are windows of plain text."""
    if isinstance(examples, StoredExamples):
        return int((examples.columns()[:, 7] >= 0).sum())
    return sum(example.text_size is not None for example in examples)
