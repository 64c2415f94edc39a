"""The character classes of the C tokenizer, against Python's own Unicode data."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest

HEADER = Path(__file__).parents[3] / "runtime" / "csrc" / "unicode_tables.h"


def _members(name: str) -> set[int]:
    """Code points in one table of the header."""
    text = HEADER.read_text()
    body = re.search(rf"{name}\[\]\[2\] = \{{(.*?)\n\}};", text, re.S)
    assert body is not None
    runs = [(int(a, 16), int(b, 16)) for a, b in re.findall(r"\{0x(\w+), 0x(\w+)\}", body[1])]
    assert all(first <= last for first, last in runs)
    assert all(a[1] + 1 < b[0] for a, b in pairwise(runs)), "runs must ascend with gaps between"
    return {code for first, last in runs for code in range(first, last + 1)}


@pytest.mark.parametrize(("name", "major"), [("letters", "L"), ("numbers", "N")])
def test_classes_are_unicodes_general_categories(name: str, major: str) -> None:
    """Of every character that this Python's Unicode version knows; the tables may be of a later version."""
    members = _members(name)
    for code in range(0x110000):
        category = unicodedata.category(chr(code))
        if category not in ("Cn", "Cs"):
            assert (code in members) == (category[0] == major), hex(code)


def test_blanks_are_the_white_space_property() -> None:
    controls = {0x1C, 0x1D, 0x1E, 0x1F}  # Python's isspace counts these four separators too
    assert _members("blanks") == {code for code in range(0x110000) if chr(code).isspace()} - controls
