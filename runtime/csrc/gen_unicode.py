"""Writes unicode_tables.h: the code points that are letters, numbers and blanks to the `tokenizers` library.

The C runtime must cut text where `tokenizers` cuts it, and the two differ wherever their Unicode versions do. So the
tables are read out of that library's own regular expressions, one code point at a time.

    python runtime/csrc/gen_unicode.py > runtime/csrc/unicode_tables.h
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import tokenizers
from tokenizers import Regex, pre_tokenizers

_SURROGATES = range(0xD800, 0xE000)
_BLOCK = 4096  # code points tried at once


def members(pattern: str) -> Iterator[int]:
    """Code points that a regular expression of one character matches, ascending."""
    keep = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    split = pre_tokenizers.Sequence([keep, pre_tokenizers.Split(Regex("(?m:.)"), behavior="isolated")])
    for first in range(0, 0x110000, _BLOCK):
        text = "".join(chr(c) for c in range(first, first + _BLOCK) if c not in _SURROGATES)
        yield from (ord(character) for piece, _ in split.pre_tokenize_str(text) for character in piece)


def ranges(pattern: str) -> list[tuple[int, int]]:
    """The members as runs (first, last)."""
    runs: list[tuple[int, int]] = []
    for code in members(pattern):
        if runs and runs[-1][1] == code - 1:
            runs[-1] = (runs[-1][0], code)
        else:
            runs.append((code, code))
    return runs


def table(name: str, pattern: str) -> str:
    """One C array of (first, last) pairs, five to a line."""
    cells = [f"{{0x{first:X}, 0x{last:X}}}," for first, last in ranges(pattern)]
    rows = ["    " + " ".join(cells[i : i + 5]) for i in range(0, len(cells), 5)]
    return f"static const uint32_t {name}[][2] = {{  // {pattern}\n" + "\n".join(rows) + "\n};\n"


def main() -> None:
    """Prints the header."""
    head = (
        f"// unicode_tables.h: made by gen_unicode.py from tokenizers {tokenizers.__version__}. Do not edit.\n"
        "// Runs of code points {first, last}, ascending.\n"
    )
    tables = [table("letters", r"\p{L}"), table("numbers", r"\p{N}"), table("blanks", r"\s")]
    sys.stdout.write(head + "\n" + "\n".join(tables))


if __name__ == "__main__":
    main()
