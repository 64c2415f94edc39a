"""Builds a `tokenizers.Tokenizer` from a Vocabulary, with the ids of the model's own tokenizer.

`PRE_TOKENIZERS` is the one place that knows which splitting rule a `tokenizer.ggml.pre` names; the C runtime has
the same rules by hand (`runtime/csrc/tokenizer_split.c`).
"""

from __future__ import annotations

from collections.abc import Callable
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
    merges = spm_merges(vocabulary, vocabulary.tie_order)
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


def spm_merges(vocabulary: Vocabulary, tie_order: TieOrder) -> list[tuple[str, str]]:
    """Merges that make BPE by rank give what SentencePiece's BPE by score gives.

    Every split of a piece into two pieces is a merge, ranked by the score of the result; user-defined pieces count
    as score 0, above all others. Splits of one piece are ordered by the lengths of their parts, longest left part
    first ("length": transformers since 4.4x, Gemma 3's file), or by the parts' ids ("id": before, Gemma 2's file).
    Pieces that text must never become (control, byte, unused) get no merge.

    References:
      transformers, `convert_slow_tokenizer.py`, `generate_merges`.
    """
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    user_defined, reachable = int(TokenType.USER_DEFINED), {int(TokenType.NORMAL), int(TokenType.USER_DEFINED)}
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece, kind, score in zip(vocabulary.tokens, vocabulary.token_types, vocabulary.scores, strict=True):
        if kind not in reachable:
            continue
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece)) if piece[:cut] in ids]
        known = [(left, right) for left, right in splits if right in ids]
        if tie_order == "id":
            known.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        rank = 0.0 if kind == user_defined else score
        ranked.extend((rank, len(left), len(right), left, right) for left, right in known)
    # Both sorts are stable: pairs that compare equal stay in the order of the pieces' ids.
    ranked.sort(key=itemgetter(0, 1, 2) if tie_order == "length" else itemgetter(0), reverse=True)
    return [(left, right) for _, _, _, left, right in ranked]
