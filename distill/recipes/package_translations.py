"""The recipe `package_translations`: a piece of a Debian package's description in English, its translation out.

Rebuilt on the user's machine from apt's lists (suites bookworm and trixie, main), since every text stands under its own
package's licence. Translations are tied to their English text by Description-md5, so that none is older than what it
translates, and are cut into synopsis, paragraphs and list items where both sides have equally many. Splits go by source
package as in `package_summaries`: who learns to summarise and to translate has the same packages held out.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attar.distill.recipes._debian_lists import (
    AptError,
    Description,
    Translation,
    fetch_lists,
    read_descriptions,
    read_translations,
)
from attar.distill.recipes._output import Row, write_data_set
from attar.distill.recipes._packages import SUITES, PackagesReport, SeenTexts, by_split, why_uninformative, words_of

LanguagePair = Literal["en-de", "en-fr"]
PROMPT = "{text}\n\n{language} translation:"

_LANGUAGES = {"de": "German", "fr": "French"}
_MIN_WORDS, _MAX_WORDS = 3, 150
_MIN_RATIO, _MAX_RATIO = 0.5, 2.5  # of characters, translation to English; most lie between 1.0 and 1.4
_ENGLISH_LEFT = 0.7
_BULLET = re.compile(r"^[*\-+•o] +")
_LETTERS = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Pair:
    """One example: a piece of an English description and its translation."""

    package: str
    source: str
    text: str
    translation: str

    def to_example(self, language: str) -> Row:
        """The JSONL row that `attar distill` reads; `language` is the translation's code."""
        return {
            "prompt": PROMPT.format(text=self.text, language=_LANGUAGES[language]),
            "completion": f" {self.translation}",
            "package": self.package,
            "source": self.source,
        }


def build(
    folder: Path,
    *,
    pair: LanguagePair = "en-de",
    max_words: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> PackagesReport:
    """Writes `train.jsonl`, `validation.jsonl`, `test.jsonl` and `recipe.json` into `folder`.

    Args:
      folder: Output folder, made if it does not exist.
      pair: Languages, from and to.
      max_words: Leaves out longer English pieces; None keeps all.
      progress: Called with a few words at each stage.

    Raises:
      AptError: If apt is absent or fails.
      OSError: If the folder cannot be written.
    """
    say = progress or (lambda _: None)
    language = pair.partition("-")[2]
    folder.mkdir(parents=True, exist_ok=True)
    descriptions, translations = _read(language, say)
    say("aligning and cleaning")
    pairs, dropped = align(descriptions, translations)
    if max_words is not None:
        kept = [piece for piece in pairs if len(piece.text.split()) <= max_words]
        dropped[f"over {max_words} words"] = len(pairs) - len(kept)
        pairs = kept
    report = PackagesReport("package_translations", f"apt: {', '.join(SUITES)} main")
    report.options = {"pair": pair, "max_words": max_words}
    report.descriptions, report.dropped = len(descriptions), dict(dropped)
    report.sources = len({piece.source for piece in pairs})
    write_data_set(folder, by_split(piece.to_example(language) for piece in pairs), report)
    return report


def _read(language: str, say: Callable[[str], None]) -> tuple[list[Description], dict[str, Translation]]:
    with tempfile.TemporaryDirectory(prefix="attar-apt-") as state:
        say("fetching package lists")
        try:
            lists = fetch_lists(Path(state), SUITES, ("en", language))
        except AptError as error:
            raise AptError(f"{error}; package_translations needs apt, since no sample of it is bundled") from None
        descriptions = read_descriptions(lists, SUITES, "en", say)
        return descriptions, read_translations(lists, SUITES, language, say)


def align(
    descriptions: Sequence[Description], translations: Mapping[str, Translation]
) -> tuple[list[Pair], Counter[str]]:
    """Pairs the pieces of each description with those of its translation; counts what is left out by reason.

    Args:
      descriptions: In English.
      translations: By Description-md5.
    """
    dropped: Counter[str] = Counter()
    kept: list[Pair] = []
    seen = SeenTexts()
    for described in descriptions:
        if reason := why_uninformative(described):
            dropped[reason] += 1
            continue
        translation = translations.get(described.md5)
        if translation is None:
            dropped["description not translated"] += 1
            continue
        for text, translated in _pieces(described, translation, dropped):
            words = _own_words(described, text)
            reason = why_unfit(text, translated)
            if reason is None and seen.resembles(described.source, words):
                reason = "near-duplicate"
            if reason is not None:
                dropped[reason] += 1
                continue
            seen.add(described.source, words)
            kept.append(Pair(described.package, described.source, text, translated))
    return kept, dropped


def _pieces(described: Description, translation: Translation, dropped: Counter[str]) -> Iterator[tuple[str, str]]:
    """The synopsis and, where there are equally many of the same kind, the paragraphs and items of both sides."""
    yield _one_line(described.synopsis), _one_line(translation.synopsis)
    texts, translated = described.paragraphs, translation.paragraphs
    if [bool(_BULLET.match(text)) for text in texts] != [bool(_BULLET.match(text)) for text in translated]:
        dropped["paragraphs cut differently"] += 1
        return
    for text, other in zip(texts, translated, strict=True):
        yield _one_line(text), _one_line(other)


def _one_line(text: str) -> str:
    """The text without a bullet, runs of blanks taken as one."""
    return " ".join(_BULLET.sub("", text).split())


def _own_words(described: Description, text: str) -> list[str]:
    """Words of the text without the package's own name, so that sister packages' phrases are seen to be the same."""
    names = {*words_of(described.package), *words_of(described.source), described.package, described.source}
    return [word for word in words_of(text) if word not in names]


def why_unfit(text: str, translation: str) -> str | None:
    """The reason to leave a pair out, None for the others."""
    if not _MIN_WORDS <= len(_LETTERS.findall(text)) <= _MAX_WORDS:
        return "length"
    if not _MIN_RATIO <= len(translation) / len(text) <= _MAX_RATIO:
        return "lengths too different"
    if _overlap(text, translation) > _ENGLISH_LEFT:
        return "left in English"
    if sorted(re.findall(r"\d+", text)) != sorted(re.findall(r"\d+", translation)):
        return "numbers differ"
    return None


def _overlap(text: str, translation: str) -> float:
    """Share of the English words that the translation has too."""
    words, others = ({word.lower() for word in _LETTERS.findall(side)} for side in (text, translation))
    return len(words & others) / len(words)
