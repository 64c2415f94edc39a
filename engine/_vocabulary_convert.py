"""Turns a Hugging Face tokenizer into the Vocabulary that a GGUF keeps, or refuses where the ids would differ."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from attar.engine._fast_tokenizer import FastTokenizer, is_byte_level
from attar.engine._vocabulary import SPACE_MARK, TieOrder, TokenizerError, TokenType, Vocabulary
from attar.engine._vocabulary_build import PRE_TOKENIZERS, SpmMerges, merge_makes

_PADDING_SCORE = -1000.0  # llama.cpp's score of a piece that no merge makes


def vocabulary_from_tokenizer(tokenizer: FastTokenizer) -> Vocabulary:
    """The GGUF vocabulary of a Hugging Face tokenizer.

    Raises:
      TokenizerError: If the tokenizer is not BPE, or splits or normalises text in a way a GGUF cannot name.
    """
    description = tokenizer.description
    model = description["model"]
    if model.get("type") != "BPE":
        raise TokenizerError(f"a GGUF carries BPE tokenizers only, got {model.get('type')!r}")
    tokens, types = _tokens_and_types(tokenizer)
    if is_byte_level(tokenizer.backend):
        return _byte_level(tokenizer, tokens, types)
    return _sentencepiece(tokenizer, tokens, types)


def _tokens_and_types(tokenizer: FastTokenizer) -> tuple[list[str], list[int]]:
    """Pieces by id and their kinds; ids that no piece has become unused `[PAD<id>]`, as llama.cpp writes them."""
    by_id = {i: piece for piece, i in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(tokenizer.vocab_size)]
    types = [int(TokenType.NORMAL if i in by_id else TokenType.UNUSED) for i in range(tokenizer.vocab_size)]
    fallback = bool(tokenizer.description["model"].get("byte_fallback"))
    for i, token in enumerate(tokens):
        if fallback and len(token) == 6 and token.startswith("<0x") and len(tokenizer.token_bytes(i)) == 1:
            types[i] = int(TokenType.BYTE)
    for i, added in tokenizer.backend.get_added_tokens_decoder().items():
        if added.normalized and any(c == " " or c == SPACE_MARK for c in added.content) and fallback:
            raise TokenizerError(f"added token {added.content!r} must not be normalised: a GGUF cannot say so")
        if added.single_word or added.lstrip or added.rstrip:
            raise TokenizerError(
                f"added token {added.content!r} strips blanks or needs whole words: a GGUF cannot say so"
            )
        if fallback and not added.special and " " in added.content:
            raise TokenizerError(f"added token {added.content!r} must not hold a plain space: a GGUF spells U+2581 so")
        types[i] = int(TokenType.CONTROL if added.special else TokenType.USER_DEFINED)
    return tokens, types


def _common(tokenizer: FastTokenizer) -> dict[str, Any]:
    specials = tokenizer.specials
    ends = specials.eos_token_ids
    return {
        "bos_token_id": specials.bos_token_id,
        "eos_token_id": ends[0] if ends else None,
        "eot_token_id": ends[1] if len(ends) > 1 else None,
        "eom_token_id": ends[2] if len(ends) > 2 else None,
        "unk_token_id": specials.unk_token_id,
        "pad_token_id": specials.pad_token_id,
        "add_bos": tokenizer.add_bos,
        "add_eos": specials.add_eos,
        "chat_template": specials.chat_template,
    }


def _merges(description: dict[str, Any]) -> list[tuple[str, str]]:
    """Merges as pairs; older files spell each as one string with a blank between."""
    raw = description["model"]["merges"]
    split = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in raw]
    return [(left, right) for left, right in split]


def _byte_level(tokenizer: FastTokenizer, tokens: list[str], types: list[int]) -> Vocabulary:
    description = tokenizer.description
    if description.get("normalizer") is not None:
        kind = description["normalizer"].get("type")
        raise TokenizerError(f"normalizer {kind!r} cannot be kept in a GGUF: ids would differ for text that it changes")
    pre = _pre_tokenizer_name(description)
    if bool(description["model"].get("ignore_merges")) != (pre == "llama-bpe"):
        raise TokenizerError(f"ignore_merges must be {pre == 'llama-bpe'} for the splitting rule {pre!r}")
    merges = tuple(f"{left} {right}" for left, right in _merges(description))
    return Vocabulary(
        model="gpt2", pre=pre, tokens=tuple(tokens), token_types=tuple(types), merges=merges, **_common(tokenizer)
    )


def _pre_tokenizer_name(description: dict[str, Any]) -> str:
    """The `tokenizer.ggml.pre` whose rule this tokenizer has."""
    wanted = _essence(description.get("pre_tokenizer"))
    for name, make in PRE_TOKENIZERS.items():
        if _essence(json.loads(make().__getstate__())) == wanted:
            return name
    names = ", ".join(sorted(PRE_TOKENIZERS))
    raise TokenizerError(f"the pre-tokenizer must be one of the rules {names}; a GGUF has no name for this one")


def _essence(pre_tokenizer: Any) -> Any:
    """A pre-tokenizer's description without what does not change ids: offsets, and a Sequence around one step."""
    if not isinstance(pre_tokenizer, dict):
        return pre_tokenizer
    steps = pre_tokenizer.get("pretokenizers")
    if steps is not None and len(steps) == 1:
        return _essence(steps[0])
    if steps is not None:
        return [_essence(step) for step in steps]
    return {key: value for key, value in pre_tokenizer.items() if key != "trim_offsets"}


def _sentencepiece(tokenizer: FastTokenizer, tokens: list[str], types: list[int]) -> Vocabulary:
    description = tokenizer.description
    merges = _merges(description)
    common = _common(tokenizer)
    unknown = description["model"].get("unk_token")
    if common["unk_token_id"] is None and unknown is not None:
        common["unk_token_id"] = tokenizer.backend.token_to_id(unknown)
    vocabulary = Vocabulary(
        model="llama",
        pre="default",
        tokens=tuple(tokens),
        token_types=tuple(types),
        scores=_scores(tokens, types, merges),
        add_space_prefix=_space_prefix(description),
        **common,
    )
    return dataclasses.replace(vocabulary, tie_order=_tie_order(vocabulary, merges))


def _tie_order(vocabulary: Vocabulary, merges: list[tuple[str, str]]) -> TieOrder:
    """The order that leads from the scores back to the tokenizer's merges, those aside that text can never reach.

    Raises:
      TokenizerError: If neither does.
    """
    makes = merge_makes(vocabulary)
    wanted = [pair for pair in merges if pair[0] + pair[1] in makes]
    derived = SpmMerges.of(vocabulary)
    orders: tuple[TieOrder, ...] = ("length", "id")
    for tie_order in orders:
        if derived.ranked(tie_order) == wanted:
            return tie_order
    raise TokenizerError(
        "the merges are not those of a SentencePiece model, so the scores of a GGUF cannot give the same ids"
    )


def _scores(tokens: list[str], types: list[int], merges: list[tuple[str, str]]) -> tuple[float, ...]:
    """SentencePiece's own: 0, -1, -2 ... in the order in which pieces are made; user-defined pieces do not count."""
    normal_kind = int(TokenType.NORMAL)
    normal = {token for token, kind in zip(tokens, types, strict=True) if kind == normal_kind}
    made = dict.fromkeys(piece for left, right in merges if (piece := left + right) in normal)
    score = {piece: -float(index) for index, piece in enumerate(made)}
    return tuple(score.get(token, _PADDING_SCORE) for token in tokens)


def _space_prefix(description: dict[str, Any]) -> bool:
    """Whether the normalizer writes a U+2581 in front of text.

    Raises:
      TokenizerError: If it does anything but that and spelling blanks as U+2581.
    """
    normalizer = description.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    prepend = {"type": "Prepend", "prepend": SPACE_MARK}
    if steps not in ([replace], [prepend, replace]):
        raise TokenizerError("the normalizer must only spell blanks as U+2581; a GGUF cannot keep another")
    pre = description.get("pre_tokenizer")
    # Gemma 3 splits at blanks after all of them are gone, which does nothing.
    if pre is not None and (pre.get("type"), pre.get("pattern")) != ("Split", {"String": " "}):
        raise TokenizerError("a SentencePiece tokenizer must have no pre-tokenizer; a GGUF cannot keep one")
    return prepend in steps
