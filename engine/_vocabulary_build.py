"""Builds a `tokenizers.Tokenizer` from a Vocabulary, with the ids of the model's own tokenizer.

`PRE_TOKENIZERS` is the one place that knows which splitting rule a `tokenizer.ggml.pre` names; the C runtime has
the same rules by hand (`runtime/csrc/tokenizer_split.c`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from attar.engine._vocabulary import SPACE_MARK, TieOrder, TokenizerError, TokenType, Vocabulary

_CONTRACTIONS_AND_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_PUNCTUATION_AND_BLANKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_REGEX = _CONTRACTIONS_AND_WORDS + r"|\p{N}{1,3}|" + _PUNCTUATION_AND_BLANKS
QWEN2_REGEX = _CONTRACTIONS_AND_WORDS + r"|\p{N}|" + _PUNCTUATION_AND_BLANKS


def _gpt2_split() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm_split() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2_split()])


def _regex_split(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# "default" is what a GGUF without the key means: Hugging Face's byte-level default.
PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "gpt-2": _gpt2_split,
    "default": _gpt2_split,
    "smollm": _smollm_split,
    "llama-bpe": lambda: _regex_split(LLAMA3_REGEX),
    "qwen2": lambda: _regex_split(QWEN2_REGEX),
}


def build_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """A `tokenizers.Tokenizer` that gives the vocabulary's ids.

    Raises:
      TokenizerError: If the splitting rule is unknown, a token is repeated, or a merge names an absent piece.
    """
    tokenizer = _build_byte_level(vocabulary) if vocabulary.model == "gpt2" else _build_sentencepiece(vocabulary)
    control = set(vocabulary.control_ids)
    added = sorted(control | set(vocabulary.user_defined_ids))
    tokenizer.add_tokens(
        [
            AddedToken(vocabulary.tokens[i], normalized=False, special=i in control)
            for i in added
            if vocabulary.tokens[i]
        ]
    )
    prefix = [vocabulary.bos_token_id] if vocabulary.add_bos and vocabulary.bos_token_id is not None else []
    suffix = [vocabulary.eos_token_id] if vocabulary.add_eos and vocabulary.eos_token_id is not None else []
    if prefix or suffix:
        tokenizer.post_processor = _special_template(vocabulary, prefix, suffix)
    return tokenizer


def _special_template(vocabulary: Vocabulary, prefix: list[int], suffix: list[int]) -> Any:
    names = [vocabulary.tokens[i] for i in prefix], [vocabulary.tokens[i] for i in suffix]
    return processors.TemplateProcessing(
        single=[*names[0], "$A", *names[1]],
        pair=[*names[0], "$A", *names[1], *(f"{n}:1" for n in names[0]), "$B:1", *(f"{n}:1" for n in names[1])],
        special_tokens=[(vocabulary.tokens[i], i) for i in dict.fromkeys([*prefix, *suffix])],
    )


def token_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """Piece to id.

    Raises:
      TokenizerError: If a piece occurs twice.
    """
    ids: dict[str, int] = {}
    for index, token in enumerate(vocabulary.tokens):
        if ids.setdefault(token, index) != index:
            raise TokenizerError(f"tokens must differ, got {token!r} at ids {ids[token]} and {index}")
    return ids


def _build_byte_level(vocabulary: Vocabulary) -> Tokenizer:
    if vocabulary.pre not in PRE_TOKENIZERS:
        names = ", ".join(sorted(PRE_TOKENIZERS))
        raise TokenizerError(f"tokenizer.ggml.pre must be one of {names}, got {vocabulary.pre!r}")
    ids = token_ids(vocabulary)
    merges = [_merge_pair(merge, ids, rank) for rank, merge in enumerate(vocabulary.merges)]
    # Llama 3's own code looks a whole word up before it merges.
    model = BPE(vocab=ids, merges=merges, ignore_merges=vocabulary.pre == "llama-bpe")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[vocabulary.pre]()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merge_pair(merge: str, ids: dict[str, int], rank: int) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if left not in ids or right not in ids or left + right not in ids:
        raise TokenizerError(f"tokenizer.ggml.merges must join tokens of the vocabulary, got {merge!r} at index {rank}")
    return left, right


def _build_sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    ids = token_ids(vocabulary)
    num_bytes = vocabulary.token_types.count(TokenType.BYTE)
    unknown = None if vocabulary.unk_token_id is None else vocabulary.tokens[vocabulary.unk_token_id]
    if num_bytes < 256 and unknown is None:
        raise TokenizerError(
            f"a SentencePiece vocabulary needs all 256 byte tokens or an unknown_token_id, got {num_bytes} byte tokens"
        )
    merges = SpmMerges.of(vocabulary).ranked(vocabulary.tie_order)
    model = BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=num_bytes > 0)
    tokenizer = Tokenizer(model)
    replace = normalizers.Replace(" ", SPACE_MARK)
    prefixed = normalizers.Sequence([normalizers.Prepend(SPACE_MARK), replace])
    tokenizer.normalizer = prefixed if vocabulary.add_space_prefix else replace
    steps = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.add_space_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def merge_makes(vocabulary: Vocabulary) -> frozenset[str]:
    """Pieces that text can become by merging: the normal ones, and user-defined ones with blanks in them.

    Other user-defined pieces are cut out of the text before, and control, byte and unused pieces must not be made.
    """
    normal, user_defined = int(TokenType.NORMAL), int(TokenType.USER_DEFINED)
    return frozenset(
        piece
        for piece, kind in zip(vocabulary.tokens, vocabulary.token_types, strict=True)
        if kind == normal or (kind == user_defined and SPACE_MARK in piece)
    )


@dataclass(frozen=True)
class SpmMerges:
    """Every split of every piece into two pieces: (score, left length, right length, left, right), by the result's id.

    BPE over these, ranked, gives what SentencePiece's BPE by score gives.
    """

    splits: list[tuple[float, int, int, str, str]]

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> SpmMerges:
        """Finds the splits; splits of one piece are ordered by the ids of their parts."""
        ids = {token: index for index, token in enumerate(vocabulary.tokens)}
        makes = merge_makes(vocabulary)
        found: list[tuple[float, int, int, str, str]] = []
        for piece, kind, score in zip(vocabulary.tokens, vocabulary.token_types, vocabulary.scores, strict=True):
            if piece not in makes:
                continue
            # Files give user-defined pieces any score; SentencePiece puts them above all others.
            rank = 0.0 if kind == _USER_DEFINED else score
            pairs = [(ids[left], ids[right], left, right) for left, right in _splits(piece, ids)]
            found.extend((rank, len(left), len(right), left, right) for _, _, left, right in sorted(pairs))
        return cls(found)

    def ranked(self, tie_order: TieOrder) -> list[tuple[str, str]]:
        """The merges, best first.

        Highest score first. Among equal scores "length" puts the longest left part first, then the longest right part
        (transformers since 4.4x; Gemma 3's file), and "id" keeps the order of ids (before; Gemma 2's file).

        References:
          transformers, `convert_slow_tokenizer.py`, `generate_merges`.
        """
        key = itemgetter(0, 1, 2) if tie_order == "length" else itemgetter(0)
        return [(left, right) for _, _, _, left, right in sorted(self.splits, key=key, reverse=True)]


_USER_DEFINED = int(TokenType.USER_DEFINED)  # comparing enum members is slow, and there are 262,144 pieces


def _splits(piece: str, ids: dict[str, int]) -> Iterator[tuple[str, str]]:
    for cut in range(1, len(piece)):
        left = piece[:cut]
        if left in ids and (right := piece[cut:]) in ids:
            yield left, right
