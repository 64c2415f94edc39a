"""FastTokenizer: attar's Tokenizer protocol over a `tokenizers.Tokenizer`."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tokenizers

from attar.engine._vocabulary import SPACE_MARK, TokenizerError


@dataclass(frozen=True)
class SpecialTokens:
    """Ids and switches that lie beside the vocabulary (`tokenizer_config.json`, GGUF keys)."""

    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    unk_token_id: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    chat_template: str | None = None


class FastTokenizer:
    """Encodes with `tokenizers`; decodes by joining the bytes of each token, as the C runtime does.

    Attributes:
      backend: The tokenizer that does the work; its state is not to be changed.
      specials: Ids and switches from beside the vocabulary.
    """

    def __init__(self, backend: tokenizers.Tokenizer, specials: SpecialTokens) -> None:
        self.backend = backend
        self.specials = specials
        # `encode_special_tokens` is a switch on the backend itself, so its users take turns.
        self._lock = threading.Lock()

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return len(self._pieces)

    @property
    def bos_token_id(self) -> int | None:
        return self.specials.bos_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends a generation, the file's own EOS first."""
        return self.specials.eos_token_ids

    @property
    def pad_token_id(self) -> int | None:
        return self.specials.pad_token_id

    @property
    def add_bos(self) -> bool:
        return self.specials.add_bos and self.bos_token_id is not None

    @property
    def chat_template(self) -> str | None:
        return self.specials.chat_template

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
          add_special: Adds BOS and EOS where the model's files ask for them.
          parse_special: Recognises control tokens such as `<|im_end|>` in the text; else they are plain text.

        Raises:
          TokenizerError: If the text holds a lone surrogate, which UTF-8 cannot spell.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(f"text must be valid Unicode, got a lone surrogate at index {error.start}") from None
        with self._lock:
            self.backend.encode_special_tokens = not parse_special
            ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        if not add_special:
            return ids
        prefix = [self.bos_token_id] if self.add_bos and self.bos_token_id is not None else []
        suffix = list(self.eos_token_ids[:1]) if self.specials.add_eos else []
        return [*prefix, *ids, *suffix]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
          TokenizerError: If an id is outside the vocabulary.
        """
        kept = [i for i in ids if not (skip_special and i in self._special_ids)]
        data = b"".join(self.token_bytes(i) for i in kept)
        if self._strips_prefix and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", errors="replace")

    def is_end(self, token_id: int, /) -> bool:
        """Whether a token ends a generation."""
        return token_id in self.eos_token_ids

    def is_control(self, token_id: int, /) -> bool:
        """Whether a token is left out of text, as `decode` does unless asked to keep it."""
        return token_id in self._special_ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for; a control token gives its name.

        Raises:
          TokenizerError: If the id is outside the vocabulary.
        """
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(f"token id must be below the vocabulary size {self.vocab_size}, got {token_id}")
        return self._pieces[token_id]

    def token_text(self, token_id: int | None) -> str | None:
        """The spelling of a special token for a chat template, None for None."""
        return None if token_id is None else self.token_bytes(token_id).decode("utf-8", errors="replace")

    def fingerprint(self) -> str:
        """SHA-256, in hex, of what every id stands for: equal exactly where two models' ids mean the same bytes."""
        digest = hashlib.sha256()
        for piece in self._pieces:
            digest.update(len(piece).to_bytes(4, "little") + piece)
        return digest.hexdigest()

    @cached_property
    def description(self) -> dict[str, Any]:
        """The content of `tokenizer.json`."""
        description: dict[str, Any] = json.loads(self.backend.to_str())
        return description

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def _strips_prefix(self) -> bool:
        decoder = self.backend.decoder
        return decoder is not None and '"Strip"' in str(decoder.__getstate__())

    @cached_property
    def _pieces(self) -> tuple[bytes, ...]:
        added = {i: token.content for i, token in self.backend.get_added_tokens_decoder().items()}
        by_id = {i: piece for piece, i in self.backend.get_vocab(with_added_tokens=True).items()}
        spell = _byte_level_bytes if self._is_byte_level else _sentencepiece_bytes
        pieces = []
        for i in range(max(by_id, default=-1) + 1):
            if i in added:
                plain = self._is_byte_level or i in self._special_ids
                pieces.append((added[i] if plain else added[i].replace(SPACE_MARK, " ")).encode("utf-8"))
            else:
                pieces.append(spell(by_id.get(i, "")))
        return tuple(pieces)

    @cached_property
    def _is_byte_level(self) -> bool:
        return is_byte_level(self.backend)


def is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    """True where pieces spell bytes through GPT-2's table, by the tokenizer's decoder.

    Raises:
      TokenizerError: If the decoder is neither byte-level nor SentencePiece's.
    """
    decoder = backend.decoder
    state: dict[str, Any] = {"type": None} if decoder is None else json.loads(decoder.__getstate__())
    kinds = {state["type"], *(step["type"] for step in state.get("decoders", ()))}
    if "ByteLevel" in kinds:
        return True
    if "ByteFallback" in kinds or "Metaspace" in kinds:
        return False
    raise TokenizerError(
        f"the tokenizer's decoder must be ByteLevel or contain ByteFallback, got {sorted(map(str, kinds))}"
    )


def gpt2_byte_table() -> dict[str, int]:
    """GPT-2's printable stand-in of each byte: itself where printable, else U+0100 upwards in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTE_OF = gpt2_byte_table()
_BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")


def _byte_level_bytes(piece: str) -> bytes:
    if all(c in _BYTE_OF for c in piece):
        return bytes(_BYTE_OF[c] for c in piece)
    return piece.encode("utf-8")


def _sentencepiece_bytes(piece: str) -> bytes:
    if _BYTE_PIECE.fullmatch(piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE_MARK, " ").encode("utf-8")
