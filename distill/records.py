"""Reads what training data says, file by file: prompts with completions, conversations, and plain text.

```
.jsonl, .json   one JSON object a line, in one of four forms:
                {"prompt": "...", "completion": "..."}
                {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}
                {"question": "...", "answer": "..."}   GSM8K's, which `attar.distill.answers` makes a prompt of
                {"text": "..."}
.parquet        the same keys as columns (extra `attar[parquet]`)
.txt            UTF-8 text: one document a file, or documents parted by blank lines
```
A file is read as it is needed, except that a text file of one document is held whole.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from attar.distill.answers import answer_completion, question_prompt

Documents = Literal["file", "blank-line"]
"""What one document of a `.txt` file is: the whole file, or what stands between blank lines."""

Message = dict[str, str]
_FORMS = "'prompt' and 'completion', or 'messages', or 'question' and 'answer', or 'text'"
_KEYS = ("messages", "prompt", "completion", "question", "answer", "text")
_SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")


class DataError(ValueError):
    """Training data that cannot be used; the message names the file and, where there is one, the line."""


@dataclass(frozen=True)
class Record:
    """One entry of a file as written: a prompt with its completion, a conversation, or a document.

    Attributes:
      place: For messages, such as "train.jsonl:12" or "train.parquet: row 12".
      line: Line, or row of a Parquet file, from 1; of a document of a text file the line where it begins.
      text: The document; None where the entry is none.
    """

    place: str
    line: int
    prompt: str = ""
    completion: str | None = None
    messages: tuple[Message, ...] = ()
    text: str | None = None


def find_files(patterns: Sequence[str]) -> list[Path]:
    """The files that paths and glob patterns name, those of a pattern in the order of their names.

    Raises:
      DataError: If one names no file, a folder, or a file of no known kind.
    """
    files = []
    for pattern in patterns:
        path = Path(pattern)
        found = [path] if path.exists() or not glob.has_magic(pattern) else sorted(map(Path, glob.glob(pattern)))
        if not found:
            raise DataError(f"{pattern}: matches no file")
        files += found
    for path in files:
        if path.is_dir():
            raise DataError(f"{path}: is a folder; name its files, such as {path}/*.jsonl")
        if path.suffix not in _SUFFIXES:
            raise DataError(f"{path}: must be named {', '.join(f'*{suffix}' for suffix in _SUFFIXES)}")
    return files


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes, in hex.

    Raises:
      DataError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def read_records(path: Path, documents: Documents = "file") -> Iterator[Record]:
    """Checks and yields the entries of a file, by the kind that its name says.

    Args:
      path: The file.
      documents: What one document of a text file is; other files are not touched by it.

    Raises:
      DataError: If the file cannot be read, or an entry is malformed.
    """
    if path.suffix == ".parquet":
        yield from _parquet_records(path)
        return
    try:
        with path.open("rb") as file:
            yield from (
                text_records(path, file.read(), documents) if path.suffix == ".txt" else parse_records(path, file)
            )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def parse_records(path: Path, lines: Iterable[bytes]) -> Iterator[Record]:
    """Checks and yields the lines of a JSONL file; blank lines are skipped.

    Raises:
      DataError: If a line is not UTF-8, not a JSON object, or lacks or misuses a key.
    """
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        place = f"{path}:{number}"
        try:
            value = json.loads(raw)
        except UnicodeDecodeError as error:
            raise DataError(f"{place}: is not UTF-8 text (byte {error.start} of the line)") from None
        except json.JSONDecodeError as error:
            raise DataError(f"{place}: is not valid JSON: {error.msg} (column {error.colno})") from None
        yield _record(place, number, value)


def text_records(path: Path, content: bytes, documents: Documents) -> Iterator[Record]:
    """Yields the documents of a text file; blank ones are skipped.

    Raises:
      DataError: If it is not UTF-8.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{number}: is not UTF-8 text (byte {error.start} of the file)") from None
    if documents == "file":
        if text.strip():
            yield Record(f"{path}:1", 1, text=text)
        return
    kept: list[str] = []
    lines: list[str] = [*text.split("\n"), ""]
    for number, line in enumerate(lines, start=1):
        if line.strip():
            kept.append(line)
        elif kept:
            first = number - len(kept)
            yield Record(f"{path}:{first}", first, text="\n".join(kept))
            kept = []


def _parquet_records(path: Path) -> Iterator[Record]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise DataError(f"{path}: Parquet is read by pyarrow; run: pip install 'attar[parquet]'") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [name for name in names if name in _KEYS]
            if not columns:
                raise DataError(f"{path}: must have columns {_FORMS}; got {sorted(names)}")
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    present = {key: value for key, value in row.items() if value is not None}
                    yield _record(f"{path}: row {number}", number, present)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from None


def _record(place: str, line: int, value: Any) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{place}: must be a JSON object, got {type(value).__name__}")
    if "messages" in value:
        return Record(place, line, messages=_messages(place, value["messages"]))
    if "prompt" in value:
        prompt, completion = _strings(place, value, ("prompt", "completion"))
        return Record(place, line, prompt, completion)
    if "question" in value:
        question, answer = _strings(place, value, ("question", "answer"))
        return Record(place, line, question_prompt(question), None if answer is None else answer_completion(answer))
    if "text" in value:
        text, _ = _strings(place, value, ("text", "text"))
        return Record(place, line, text=text)
    raise DataError(f"{place}: must have {_FORMS}; got {sorted(value)}")


def _strings(place: str, value: dict[str, Any], keys: tuple[str, str]) -> tuple[str, str | None]:
    """The strings under both keys, of which the second may be absent."""
    for key in keys:
        if key in value and not isinstance(value[key], str):
            raise DataError(f"{place}: {key!r} must be a string, got {type(value[key]).__name__}")
    return value[keys[0]], value.get(keys[1])


def _messages(place: str, value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: 'messages' must be a list of at least one message")
    for message in value:
        if not (
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
        ):
            raise DataError(f"{place}: each message must have the strings 'role' and 'content', got {message!r}")
    if all(message["role"] != "assistant" for message in value):
        raise DataError(f"{place}: 'messages' must hold an assistant turn to learn from")
    return tuple({"role": message["role"], "content": message["content"]} for message in value)
