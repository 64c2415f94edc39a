"""Reads a SentencePiece `.model` file into a Vocabulary.

The file is one protocol buffer, `ModelProto` of sentencepiece's `sentencepiece_model.proto`:

    1 repeated SentencePiece { 1 piece (string), 2 score (float), 3 type (enum, 1 = normal) }
    2 TrainerSpec            { 3 model_type (1 unigram, 2 bpe), 24 treat_whitespace_as_suffix, 40 unk_id, 41 bos_id,
                               42 eos_id, 43 pad_id }
    3 NormalizerSpec         { 2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces,
                               5 escape_whitespaces }

Only these few fields are needed, so they are read here instead of through the protobuf package.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from attar.engine._vocabulary import TokenizerError, TokenType, Vocabulary

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BPE = 2
_Value = int | bytes


def vocabulary_from_sentencepiece(path: Path) -> Vocabulary:
    """The vocabulary of a SentencePiece BPE model.

    BOS is added to text and no EOS is, as the models published with such a file expect.

    Raises:
      TokenizerError: If the file is damaged, is a unigram model, or normalises its text.
      OSError: If the file cannot be read.
    """
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, _Value] = {}
    normalizer: dict[int, _Value] = {}
    for number, value in _fields(path.read_bytes()):
        if number == 1:
            pieces.append(_piece(_submessage(value), len(pieces)))
        elif number == 2:
            trainer = dict(_fields(_submessage(value)))
        elif number == 3:
            normalizer = dict(_fields(_submessage(value)))
    _check_supported(trainer, normalizer)
    ids = {name: _id(trainer, field, default) for name, field, default in _ID_FIELDS}
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tuple(text for text, _, _ in pieces),
        token_types=tuple(kind for _, _, kind in pieces),
        scores=tuple(score for _, score, _ in pieces),
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
        unk_token_id=ids["unk"],
        pad_token_id=ids["pad"],
        add_bos=ids["bos"] is not None,
        add_space_prefix=bool(normalizer.get(3, 1)),
    )


# Field numbers and defaults of TrainerSpec; -1 means that the model has no such token.
_ID_FIELDS = (("unk", 40, 0), ("bos", 41, 1), ("eos", 42, 2), ("pad", 43, -1))


def _check_supported(trainer: dict[int, _Value], normalizer: dict[int, _Value]) -> None:
    remedy = "convert it to a tokenizer.json with transformers"
    if trainer.get(3, 1) != _BPE:
        raise TokenizerError(f"a SentencePiece model must be of type BPE (2), got type {trainer.get(3, 1)!r}; {remedy}")
    if trainer.get(24):
        raise TokenizerError(f"a SentencePiece model that marks blanks at the end of words is not supported; {remedy}")
    if normalizer.get(2):
        raise TokenizerError(f"a SentencePiece model that normalises its text is not supported; {remedy}")
    if normalizer.get(4, 1):
        raise TokenizerError(f"a SentencePiece model that removes extra blanks is not supported; {remedy}")
    if not normalizer.get(5, 1):
        raise TokenizerError(f"a SentencePiece model that does not escape blanks is not supported; {remedy}")


def _piece(message: bytes, index: int) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, int(TokenType.NORMAL)
    for number, value in _fields(message):
        if number == 1:
            try:
                text = _submessage(value).decode("utf-8")
            except UnicodeDecodeError:
                raise TokenizerError(f"a SentencePiece piece must be UTF-8, got other bytes at id {index}") from None
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            score = struct.unpack("<f", value)[0]
        elif number == 3 and isinstance(value, int):
            kind = value
    return text, score, kind


def _id(trainer: dict[int, _Value], field: int, default: int) -> int | None:
    value = trainer.get(field, default)
    if not isinstance(value, int):
        raise TokenizerError(f"TrainerSpec field {field} must be a number")
    signed = value - (1 << 64) if value >= 1 << 63 else value  # a negative int32 is sign-extended to 64 bits
    return None if signed < 0 else signed


def _submessage(value: _Value) -> bytes:
    if not isinstance(value, bytes):
        raise TokenizerError("not a SentencePiece model: a message was expected and a number found")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, _Value]]:
    """Walks one protobuf message: (field number, integer or bytes)."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == _VARINT:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        if wire == _BYTES:
            length, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise TokenizerError(f"not a SentencePiece model: wire type {wire} at byte {at}")
        if length > len(data) - at:
            raise TokenizerError(f"SentencePiece model is cut short: {length} bytes wanted at {at} of {len(data)}")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise TokenizerError(f"SentencePiece model is cut short inside a number at byte {at}")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise TokenizerError(f"not a SentencePiece model: a number at byte {at} is longer than 64 bits")
