"""What a model argument means: a name, a Hugging Face id, a checkpoint folder, a run folder, or a file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from attar.cli._console import err
from attar.runtime.chat import Continue, Message
from attar.runtime.hub import cache_folder, resolve

if TYPE_CHECKING:
    from attar.engine._fast_tokenizer import FastTokenizer


@dataclass(frozen=True)
class ShownTokenizer:
    """A tokenizer in Python as those of GGUF files are in C: control tokens have no bytes in the text that is shown."""

    loaded: FastTokenizer

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        return self.loaded.encode(text, add_special=add_special, parse_special=parse_special)

    def token_bytes(self, token: int, /) -> bytes:
        return b"" if self.loaded.is_control(token) else self.loaded.token_bytes(token)

    def is_end(self, token: int, /) -> bool:
        return self.loaded.is_end(token)


class TextTokenizer(Protocol):
    """What the commands need of a tokenizer, in C or in Python."""

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]: ...
    def token_bytes(self, token: int, /) -> bytes: ...
    def is_end(self, token: int, /) -> bool: ...


def checkpoint_folder(path: Path) -> Path:
    """The Hugging Face folder that a path means: itself, or the student inside a run folder; else the path."""
    student = path / "student"
    return student if (student / "config.json").is_file() else path


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a folder of weights that no device runtime opens."""
    return path.is_dir() and (path / "config.json").is_file() and not (path / "model.onnx").is_file()


def model_source(name: str) -> Path:
    """The checkpoint folder or GGUF that a model argument means, for training and export."""
    path = checkpoint_folder(resolve(name))
    if path.is_dir() and not (path / "config.json").is_file():
        raise click.ClickException(f"{path}: neither a checkpoint (no config.json) nor a finished run (no student/)")
    return path


def device_file(name: str) -> Path:
    """The file that a device runtime opens; a checkpoint folder is lowered to an F16 GGUF in the cache first."""
    path = checkpoint_folder(resolve(name))
    if not is_checkpoint(path):
        return path
    lowered = cache_folder() / "lowered" / f"{_identity(path)}.gguf"
    if not lowered.is_file():
        from attar.export.gguf_writer import export_gguf

        lowered.parent.mkdir(parents=True, exist_ok=True)
        with err.status(f"lowering {path.name} to an F16 GGUF for the device runtime"):
            export_gguf(path, lowered, "F16")
    return lowered


def _identity(folder: Path) -> str:
    """A name for the content of a checkpoint folder: its files' names, sizes and times."""
    stamps = [f"{p.name}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in sorted(folder.iterdir()) if p.is_file()]
    return hashlib.sha256("\n".join([str(folder.resolve()), *stamps]).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Voice:
    """How a model reads and writes: its tokenizer, and its chat template where it has one."""

    tokenizer: TextTokenizer
    continue_text: Continue | None


def open_voice(path: Path) -> Voice:
    """The tokenizer and template of an exported file: inside a GGUF, beside an ONNX or TFLite."""
    from attar.engine.chat_template import render_turn_suffix
    from attar.engine.tokenizer import load_tokenizer

    if path.suffix == ".gguf":
        from attar.runtime.native import NativeTokenizer

        native = NativeTokenizer.open(path)
        template, bos, eos = native.chat_template, native.bos_text, native.eos_text
        tokenizer: TextTokenizer = native
    else:
        loaded = load_tokenizer(path if path.is_dir() else path.parent)
        template = loaded.chat_template
        bos, eos = loaded.token_text(loaded.bos_token_id), loaded.token_text(next(iter(loaded.eos_token_ids), None))
        tokenizer = ShownTokenizer(loaded)
    if template is None:
        return Voice(tokenizer, None)

    def continue_text(messages: Sequence[Message], new: Sequence[Message]) -> str | None:
        return render_turn_suffix(template, messages, new, bos_token=bos, eos_token=eos)

    return Voice(tokenizer, continue_text)
