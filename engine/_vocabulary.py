"""Vocabulary: the pieces, ranks and special ids of a tokenizer, as a GGUF file keeps them.

Two models exist. `gpt2` is byte-level BPE: pieces spell bytes through GPT-2's table of printable characters, and
`merges` ranks the pairs. `llama` is SentencePiece BPE: pieces are text with U+2581 for a space, `scores` ranks them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, cast

VocabularyModel = Literal["gpt2", "llama"]
# How pairs that spell the same piece are ordered (see `_spm_merges`). GGUF has no key of its own for it.
TieOrder = Literal["length", "id"]
TIE_ORDER_KEY = "attar.tokenizer.tie_order"

SPACE_MARK = "\u2581"

# Control tokens that end a turn, whatever the file's eos id says (the C runtime has the same list).
END_TOKENS = (
    "<end_of_turn>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
)


class TokenizerError(ValueError):
    """A tokenizer that cannot be read, or that attar cannot represent exactly."""


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type` values (GGUF specification; SentencePiece's piece types)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """What `tokenizer.ggml.*` says. Lists are indexed by token id, V long.

    Attributes:
      pre: Name of the splitting rule, llama.cpp's spelling (`gpt2` only).
      tokens: Pieces as the model spells them; `llama` pieces have U+2581 for every space.
      scores: Merge priority of each piece, higher first (`llama` only, else empty).
      merges: "left right" pairs, best first (`gpt2` only, else empty).
      tie_order: Order of pairs that make the same piece (`llama` only).
      add_space_prefix: Text starts with a U+2581 that the user did not write (Llama 2; not Gemma).
    """

    model: VocabularyModel
    pre: str
    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    tie_order: TieOrder = "length"
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    eot_token_id: int | None = None
    eom_token_id: int | None = None
    unk_token_id: int | None = None
    pad_token_id: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    chat_template: str | None = None

    def __post_init__(self) -> None:
        size = len(self.tokens)
        if size == 0:
            raise TokenizerError("tokenizer.ggml.tokens must hold at least one token, got none")
        if len(self.token_types) != size:
            raise TokenizerError(
                f"tokenizer.ggml.token_type must have an entry per token, got {len(self.token_types)} for {size} tokens"
            )
        if self.model == "llama" and len(self.scores) != size:
            raise TokenizerError(
                f"tokenizer.ggml.scores must have one entry per token, got {len(self.scores)} for {size} tokens"
            )
        for name in ("bos", "eos", "eot", "eom", "unk", "pad"):
            value = getattr(self, f"{name}_token_id")
            if value is not None and not 0 <= value < size:
                raise TokenizerError(f"{name}_token_id must be a token id below {size}, got {value}")

    @property
    def control_ids(self) -> tuple[int, ...]:
        """Ids that text may name only where special tokens are parsed."""
        kinds = (TokenType.CONTROL, TokenType.UNKNOWN)
        return tuple(i for i, kind in enumerate(self.token_types) if kind in kinds)

    @property
    def user_defined_ids(self) -> tuple[int, ...]:
        """Ids whose text is always cut out whole, before merging."""
        return tuple(i for i, kind in enumerate(self.token_types) if kind == TokenType.USER_DEFINED)


def vocabulary_from_gguf(metadata: Mapping[str, Any]) -> Vocabulary:
    """Reads `tokenizer.ggml.*` out of a GGUF's metadata.

    Raises:
      TokenizerError: If a key is missing, has the wrong type or length, or names a model attar does not implement.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise TokenizerError(f"tokenizer.ggml.model must be 'gpt2' or 'llama', got {model!r}")
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    types = [
        int(t) for t in _array(metadata, "tokenizer.ggml.token_type", default=[int(TokenType.NORMAL)] * len(tokens))
    ]
    if model == "llama":
        # llama.cpp's converter spells the spaces of user-defined pieces plainly.
        plain = int(TokenType.USER_DEFINED)
        tokens = [t.replace(" ", SPACE_MARK) if kind == plain else t for t, kind in zip(tokens, types, strict=False)]
    return Vocabulary(
        model=cast(VocabularyModel, model),
        pre=str(metadata.get("tokenizer.ggml.pre", "default")),
        tokens=tuple(tokens),
        token_types=tuple(types),
        scores=tuple(float(s) for s in _array(metadata, "tokenizer.ggml.scores")) if model == "llama" else (),
        merges=tuple(_strings(metadata, "tokenizer.ggml.merges")) if model == "gpt2" else (),
        tie_order=_tie_order(metadata.get(TIE_ORDER_KEY, "length")),
        bos_token_id=_id(metadata, "bos_token_id"),
        eos_token_id=_id(metadata, "eos_token_id"),
        eot_token_id=_id(metadata, "eot_token_id"),
        eom_token_id=_id(metadata, "eom_token_id"),
        unk_token_id=_id(metadata, "unknown_token_id"),
        pad_token_id=_id(metadata, "padding_token_id"),
        # llama.cpp's defaults where the keys are absent: SentencePiece models add BOS and a leading space.
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", model == "llama")),
        add_eos=bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
        add_space_prefix=model == "llama" and bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        chat_template=_optional_string(metadata, "tokenizer.chat_template"),
    )


def vocabulary_to_gguf(vocabulary: Vocabulary) -> dict[str, Any]:
    """The `tokenizer.*` metadata of a GGUF; `vocabulary_from_gguf` reads it back equal."""
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": vocabulary.model,
        "tokenizer.ggml.pre": vocabulary.pre,
        "tokenizer.ggml.tokens": list(vocabulary.tokens),
        "tokenizer.ggml.token_type": [int(t) for t in vocabulary.token_types],
        "tokenizer.ggml.add_bos_token": vocabulary.add_bos,
        "tokenizer.ggml.add_eos_token": vocabulary.add_eos,
        "tokenizer.ggml.add_space_prefix": vocabulary.add_space_prefix,
    }
    if vocabulary.model == "llama":
        user_defined = set(vocabulary.user_defined_ids)
        metadata["tokenizer.ggml.tokens"] = [
            t.replace(SPACE_MARK, " ") if i in user_defined else t for i, t in enumerate(vocabulary.tokens)
        ]
        metadata["tokenizer.ggml.scores"] = list(vocabulary.scores)
        if vocabulary.tie_order != "length":
            metadata[TIE_ORDER_KEY] = vocabulary.tie_order
    else:
        metadata["tokenizer.ggml.merges"] = list(vocabulary.merges)
    ids = {"bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unk": "unknown", "pad": "padding"}
    for name, key in ids.items():
        value = getattr(vocabulary, f"{name}_token_id")
        if value is not None:
            metadata[f"tokenizer.ggml.{key}_token_id"] = value
    if vocabulary.chat_template is not None:
        metadata["tokenizer.chat_template"] = vocabulary.chat_template
    return metadata


def end_token_ids(first: Sequence[int | None], special_tokens: Mapping[str, int]) -> tuple[int, ...]:
    """Every id that ends a generation: the named ones first, then well-known end markers among the special tokens."""
    known = [special_tokens[name] for name in END_TOKENS if name in special_tokens]
    return tuple(dict.fromkeys(i for i in [*first, *known] if i is not None))


def _array(metadata: Mapping[str, Any], key: str, default: list[int] | None = None) -> Sequence[Any]:
    value = metadata.get(key, default)
    if value is None or isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        found = "nothing" if value is None else type(value).__name__
        raise TokenizerError(f"{key} must be an array, got {found}")
    return cast(Sequence[Any], value)


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    values = list(_array(metadata, key))
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise TokenizerError(f"{key} must hold strings, got {type(value).__name__} at index {index}")
    return values


def _id(metadata: Mapping[str, Any], name: str) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}")
    # Converters write 2^32 - 1 for "no such token".
    return None if value is None or int(value) in (-1, 0xFFFFFFFF) else int(value)


def _optional_string(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise TokenizerError(f"{key} must be a string, got {type(value).__name__}")
    return value


def _tie_order(value: object) -> TieOrder:
    if value == "length" or value == "id":
        return "length" if value == "length" else "id"
    raise TokenizerError(f"{TIE_ORDER_KEY} must be 'length' or 'id', got {value!r}")
