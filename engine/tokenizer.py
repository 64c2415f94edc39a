"""Tokenizers: Hugging Face folders, SentencePiece models and GGUF vocabularies behind one protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from attar.engine._fast_tokenizer import FastTokenizer
from attar.engine._sentencepiece import vocabulary_from_sentencepiece
from attar.engine._tokenizer_folder import read_tokenizer_settings, settings_of_vocabulary, write_tokenizer_folder
from attar.engine._vocabulary import TokenizerError, Vocabulary, vocabulary_from_gguf, vocabulary_to_gguf
from attar.engine._vocabulary_build import build_tokenizer
from attar.engine._vocabulary_convert import vocabulary_from_tokenizer

__all__ = ["Tokenizer", "TokenizerError", "gguf_tokenizer_metadata", "load_tokenizer", "save_tokenizer"]


class Tokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
      vocab_size: One more than the largest id.
      eos_token_ids: Every id that ends a generation; the file's own EOS first.
      add_bos: Whether the model expects BOS in front of raw text.
      chat_template: Jinja source, or None for a model without one.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...
    @property
    def pad_token_id(self) -> int | None: ...
    @property
    def add_bos(self) -> bool: ...
    @property
    def chat_template(self) -> str | None: ...

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]: ...
    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str: ...
    def is_end(self, token_id: int, /) -> bool: ...
    def token_bytes(self, token_id: int, /) -> bytes: ...
    def token_text(self, token_id: int | None, /) -> str | None: ...
    def fingerprint(self) -> str: ...


def load_tokenizer(source: Path) -> FastTokenizer:
    """Opens the tokenizer of a model.

    Args:
      source: A Hugging Face folder (`tokenizer.json`, or `tokenizer.model`, with `tokenizer_config.json`), a `.gguf`
        file, or a `tokenizer.json` or SentencePiece `.model` file (settings are read from the files beside it).

    Raises:
      TokenizerError: If there is no tokenizer, or it cannot be read or represented exactly.
    """
    file = _tokenizer_file(Path(source))
    with _naming(file):
        if file.suffix == ".json":
            backend = _read_tokenizer_json(file)
            return FastTokenizer(backend, read_tokenizer_settings(file.parent, backend))
        if file.suffix == ".gguf":
            vocabulary = _gguf_vocabulary(file)
            return FastTokenizer(build_tokenizer(vocabulary), settings_of_vocabulary(vocabulary))
        vocabulary = vocabulary_from_sentencepiece(file)
        backend = build_tokenizer(vocabulary)
        return FastTokenizer(backend, read_tokenizer_settings(file.parent, backend, vocabulary))


def save_tokenizer(tokenizer: FastTokenizer, folder: Path) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and, where there is a template, `chat_template.jinja`.

    transformers' `AutoTokenizer.from_pretrained(folder)` gives the same ids. Each file is replaced whole.

    Raises:
      OSError: If the folder cannot be written.
    """
    write_tokenizer_folder(tokenizer, Path(folder))


def gguf_tokenizer_metadata(source: Path) -> dict[str, Any]:
    """The `tokenizer.ggml.*` and `tokenizer.chat_template` entries for a GGUF with this model's tokenizer.

    Args:
      source: As for `load_tokenizer`.

    Raises:
      TokenizerError: If there is no tokenizer, or a GGUF cannot carry it with the same ids.
    """
    file = _tokenizer_file(Path(source))
    if file.suffix == ".gguf":
        with _naming(file):
            return vocabulary_to_gguf(_gguf_vocabulary(file))
    tokenizer = load_tokenizer(file)
    with _naming(file):
        return vocabulary_to_gguf(vocabulary_from_tokenizer(tokenizer))


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Puts the file's name in front of a message about its content."""
    try:
        yield
    except TokenizerError as error:
        raise TokenizerError(f"{file}: {error}") from error


def _gguf_vocabulary(path: Path) -> Vocabulary:
    from attar.engine.gguf_file import read_gguf  # here, so that a folder can be read without the GGUF reader

    return vocabulary_from_gguf(read_gguf(path).metadata)


def _tokenizer_file(source: Path) -> Path:
    if source.is_file() or source.suffix == ".gguf":
        if source.suffix not in (".json", ".model", ".gguf"):
            raise TokenizerError(f"{source}: expected tokenizer.json, a SentencePiece .model or a .gguf file")
        return source
    for name in ("tokenizer.json", "tokenizer.model"):
        if (source / name).is_file():
            return source / name
    raise TokenizerError(
        f"{source}: no tokenizer.json or tokenizer.model here; copy the model's tokenizer files into it"
    )


def _read_tokenizer_json(file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises bare Exception for every malformed file
        raise TokenizerError(f"not a tokenizer.json that the tokenizers library reads: {error}") from error
