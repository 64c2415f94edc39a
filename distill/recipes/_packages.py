"""What the recipes made of Debian's packages share: which packages tell nothing new, and who stands in which split."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attar.distill.recipes._debian_lists import Description
from attar.distill.recipes._output import RecipeReport, Row

SUITES = ("bookworm", "trixie")
SPLITS = ("train", "validation", "test")
HELD_OUT_PERCENT = 5

_NEAR_DUPLICATE = 0.3
_PART = re.compile(
    r"-(dev|doc|docs|data|dbg|dbgsym|common|examples|tests|source|headers|l10n|locale)$|-(dev|doc|dbg)-|^lib.*-perl-"
)
_EMPTY_SHELL = re.compile(r"transitional|meta-?package|(dummy|virtual|empty) package", re.IGNORECASE)
_WORD = re.compile(r"[a-z0-9][a-z0-9+#]*")


@dataclass
class PackagesReport(RecipeReport):
    """A report on package texts.

    Attributes:
      descriptions: Read from the lists.
      sources: Source packages among the pairs.
    """

    descriptions: int = 0
    sources: int = 0


def family_of(source: str) -> str:
    """Source name with digits and version separators removed: gcc-12 and gcc-13 are one family."""
    return re.sub(r"[-.]?\d+(\.\d+)*", "", source) or source


def split_of(source: str, held_out_percent: int = HELD_OUT_PERCENT) -> str:
    """The split of a source package by a hash of its family; validation and test get `held_out_percent` each."""
    bucket = int.from_bytes(hashlib.sha256(family_of(source).encode()).digest()[:4], "big") % 100
    if bucket < 100 - 2 * held_out_percent:
        return "train"
    return "validation" if bucket < 100 - held_out_percent else "test"


def by_split(rows: Iterable[Row], held_out_percent: int = HELD_OUT_PERCENT) -> dict[str, list[Row]]:
    """The rows of each split, in their order; `source` names each row's source package."""
    splits: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row in rows:
        splits[split_of(str(row["source"]), held_out_percent)].append(row)
    return splits


def why_uninformative(described: Description) -> str | None:
    """The reason to drop a package whose description says little of its own, None for the others."""
    if _PART.search(described.package) or described.section in ("debug", "doc", "metapackages", "oldlibs"):
        return "part of another package"
    if _EMPTY_SHELL.search(described.synopsis) or _EMPTY_SHELL.search("\n".join(described.paragraphs)[:200]):
        return "transitional or meta package"
    return None


def words_of(text: str) -> list[str]:
    """Words of an English text in lower case."""
    return _WORD.findall(text.lower())


class SeenTexts:
    """Texts kept so far: opening words of all of them, and word triples by family of packages."""

    def __init__(self) -> None:
        self._openings: set[str] = set()
        self._shingles: dict[str, list[set[str]]] = {}

    def resembles(self, source: str, words: Sequence[str]) -> bool:
        """Whether a text opens as another, or shares 30 % of its word triples (Jaccard) with one of its family."""
        relatives = self._shingles.get(family_of(source), [])
        return _opening(words) in self._openings or _overlaps(_shingles(words), relatives)

    def add(self, source: str, words: Sequence[str]) -> None:
        """Remembers a text."""
        self._openings.add(_opening(words))
        self._shingles.setdefault(family_of(source), []).append(_shingles(words))


def _opening(words: Sequence[str]) -> str:
    return " ".join(words[:25])


def _shingles(words: Sequence[str]) -> set[str]:
    return {" ".join(words[i : i + 3]) for i in range(len(words) - 2)}


def _overlaps(shingles: set[str], others: Iterable[set[str]]) -> bool:
    return any(
        len(shingles & other) >= _NEAR_DUPLICATE * len(shingles | other) for other in others if shingles or other
    )
