"""Where two tokenisations of one text have a boundary at the same byte, both models have read the same text.

```
student   |The| qu|ick| fox|.|END       boundaries  0 3 6 9 13 14
teacher   |The| quick| f|ox|.|END       boundaries  0 3 9 11 13 14
```
At 0, 3, 9, 13 and 14 both predict what follows the same bytes, so their distributions can be compared there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attar.engine.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class SharedTokens:
    """Which token ids of two vocabularies stand for the same bytes. Compared by identity, as jitted functions hold it.

    Attributes:
      student, teacher: int32 [S], the ids of each shared token.
      student_others, teacher_others: int32, all other ids below the size of each model's table.
    """

    student: NDArray[np.int32]
    teacher: NDArray[np.int32]
    student_others: NDArray[np.int32]
    teacher_others: NDArray[np.int32]


def shared_tokens(student: Tokenizer, teacher: Tokenizer, student_rows: int, teacher_rows: int) -> SharedTokens:
    """Matches the tokens of two vocabularies one to one: by their bytes, and the ends of a generation as such.

    Of several tokens of the same bytes the last counts: byte pieces, which stand first, are used for what no other
    piece spells.

    Args:
      student_rows, teacher_rows: Rows of each model's table, which may be padded.
    """
    ours, theirs = (_by_bytes(t, rows) for t, rows in ((student, student_rows), (teacher, teacher_rows)))
    pairs = [(ours[piece], theirs[piece]) for piece in ours if piece in theirs]
    pairs.append((student.eos_token_ids[0], teacher.eos_token_ids[0]))
    matched = np.array(sorted(pairs), np.int32)
    others = [
        np.setdiff1d(np.arange(rows, dtype=np.int32), matched[:, side])
        for side, rows in enumerate((student_rows, teacher_rows))
    ]
    return SharedTokens(matched[:, 0], matched[:, 1], others[0], others[1])


def _by_bytes(tokenizer: Tokenizer, rows: int) -> dict[bytes, int]:
    ends = set(tokenizer.eos_token_ids)
    ids = (i for i in range(min(rows, tokenizer.vocab_size)) if i not in ends)
    return {piece: i for i in ids if (piece := tokenizer.token_bytes(i))}


def align(
    completion: Sequence[int], student: Tokenizer, teacher: Tokenizer, max_tokens: int
) -> tuple[list[int], NDArray[np.int32]]:
    """A student's completion in the teacher's tokens, and which of its positions correspond.

    Args:
      completion: N token ids of the student, with or without an end at the end.
      max_tokens: What the teacher's tokens are cut to.

    Returns:
      The teacher's ids, ending in an end token where they are not cut, and int32 [N]: for each position, at which
      the student predicts `completion[i]`, the teacher's position behind the same bytes, -1 where there is none.
    """
    pieces = [b"" if student.is_end(i) else student.token_bytes(i) for i in completion]
    data = b"".join(pieces)
    ids = teacher.encode(_valid_text(data), parse_special=False)
    places = {place: position for position, place in enumerate(_boundaries(ids, teacher, data)) if place is not None}
    starts = np.cumsum([0, *map(len, pieces)])[:-1]
    positions = np.array([places.get(int(start), -1) for start in starts], np.int32)
    ids = [*ids, teacher.eos_token_ids[0]][:max_tokens]
    return ids, np.where(positions < len(ids), positions, -1).astype(np.int32)


def _valid_text(data: bytes) -> str:
    """The text up to the first byte that is not UTF-8, as of a character that was cut."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        return data[: error.start].decode("utf-8")


def _boundaries(ids: Sequence[int], teacher: Tokenizer, data: bytes) -> list[int | None]:
    """Bytes of `data` that stand before each token, and before what follows the last; None where they differ.

    A blank that the tokenizer puts before every text is no part of it.
    """
    pieces = [teacher.token_bytes(i) for i in ids]
    read = b"".join(pieces)
    added = int(read.startswith(b" ") and not data.startswith(b" "))
    same = _common_prefix(read[added:], data)
    places = np.maximum(np.cumsum([0, *map(len, pieces)]) - added, 0).tolist()
    return [place if place <= same else None for place in places]


def _common_prefix(left: bytes, right: bytes) -> int:
    length = min(len(left), len(right))
    a, b = (np.frombuffer(x[:length], np.uint8) for x in (left, right))
    different = np.flatnonzero(a != b)
    return int(different[0]) if len(different) else length
