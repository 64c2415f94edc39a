"""The recipe `package_summaries`: a Debian package's description in, its one-line synopsis out.

Rebuilt on the user's machine from apt's lists (suites bookworm and trixie, main, English), since every text stands
under its own package's licence. Where apt is absent, a small bundled sample takes its place. Splits go by source
package name with digits removed, so that no family of packages stands on both sides.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from attar.distill.recipes._debian_lists import AptError, Description, fetch_lists, read_descriptions
from attar.distill.recipes._output import Row, write_data_set
from attar.distill.recipes._packages import (
    HELD_OUT_PERCENT,
    SUITES,
    PackagesReport,
    SeenTexts,
    by_split,
    why_uninformative,
    words_of,
)

PROMPT = "{document}\n\nOne-line summary:"

_MIN_WORDS, _MAX_WORDS = 20, 400
_HELD_OUT_PERCENT_OF_SAMPLE = 20  # a few hundred pairs: 5 % would be a dozen
_MIN_SUPPORT = 0.4
_STOP_WORDS = frozenset(
    """a an and are as at based be by can common data file files for from general in into is it its library like module
    of on or other package program provides set simple support system that the this to tool tools use used using
    utilities utility version via which with written your you""".split()
)


@dataclass(frozen=True)
class Pair:
    """One example: the document is the long description, the summary is the synopsis."""

    package: str
    source: str
    document: str
    summary: str

    def to_example(self) -> Row:
        """The JSONL row that `attar distill` reads."""
        return {
            "prompt": PROMPT.format(document=self.document),
            "completion": f" {self.summary}",
            "package": self.package,
            "source": self.source,
        }


def build(
    folder: Path,
    *,
    sample: bool | None = None,
    max_words: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> PackagesReport:
    """Writes `train.jsonl`, `validation.jsonl`, `test.jsonl` and `recipe.json` into `folder`.

    Args:
      folder: Output folder, made if it does not exist.
      sample: True takes the bundled sample, False demands apt, None takes apt where it works.
      max_words: Leaves out longer documents, for models and machines with little room; None keeps all.
      progress: Called with a few words at each stage.

    Raises:
      AptError: If `sample` is False and apt is absent or fails.
      OSError: If the folder cannot be written.
    """
    say = progress or (lambda _: None)
    folder.mkdir(parents=True, exist_ok=True)
    pairs, report = _collect(sample, say)
    report.options = {"max_words": max_words}
    if max_words is not None:
        kept = [pair for pair in pairs if len(pair.document.split()) <= max_words]
        report.dropped[f"over {max_words} words"] = len(pairs) - len(kept)
        pairs = kept
    report.sources = len({pair.source for pair in pairs})
    held_out = HELD_OUT_PERCENT if report.origin.startswith("apt") else _HELD_OUT_PERCENT_OF_SAMPLE
    write_data_set(folder, by_split((pair.to_example() for pair in pairs), held_out), report)
    return report


def _collect(sample: bool | None, say: Callable[[str], None]) -> tuple[list[Pair], PackagesReport]:
    if not sample:
        try:
            return _from_apt(say)
        except AptError as error:
            if sample is False:
                raise
            say(f"{error}; using the bundled sample")
    pairs = list(read_sample())
    return pairs, PackagesReport("package_summaries", "bundled sample", descriptions=len(pairs))


def _from_apt(say: Callable[[str], None]) -> tuple[list[Pair], PackagesReport]:
    with tempfile.TemporaryDirectory(prefix="attar-apt-") as state:
        say("fetching package lists")
        lists = fetch_lists(Path(state), SUITES, ("en",))
        descriptions = read_descriptions(lists, SUITES, "en", say)
    say("cleaning")
    pairs, dropped = clean(descriptions)
    origin = f"apt: {', '.join(SUITES)} main"
    return pairs, PackagesReport("package_summaries", origin, dropped=dict(dropped), descriptions=len(descriptions))


def read_sample() -> Iterator[Pair]:
    """The bundled pairs; each row of the file also names the licence of its package."""
    text = files("attar.distill.recipes").joinpath("package_summaries_sample.jsonl").read_text(encoding="utf-8")
    for line in text.splitlines():
        row = json.loads(line)
        yield Pair(row["package"], row["source"], row["document"], row["summary"])


def clean(descriptions: Sequence[Description]) -> tuple[list[Pair], Counter[str]]:
    """Keeps the descriptions whose synopsis summarises their text; counts the others by reason."""
    dropped: Counter[str] = Counter()
    kept: list[Pair] = []
    summaries: set[str] = set()
    seen = SeenTexts()
    for described in descriptions:
        document = "\n".join(described.paragraphs)
        words = words_of(document)
        summary_key = " ".join(words_of(described.synopsis))
        reason = _reason_to_drop(described, document)
        if reason is None and seen.resembles(described.source, words):
            reason = "near-duplicate"
        if reason is None and summary_key in summaries:
            reason = "repeated summary"
        if reason is not None:
            dropped[reason] += 1
            continue
        summaries.add(summary_key)
        seen.add(described.source, words)
        kept.append(Pair(described.package, described.source, document, described.synopsis))
    return kept, dropped


def _reason_to_drop(described: Description, document: str) -> str | None:
    if reason := why_uninformative(described):
        return reason
    if not _MIN_WORDS <= len(document.split()) <= _MAX_WORDS:
        return "document length"
    summary_words, document_words = words_of(described.synopsis), words_of(document)
    if len(summary_words) < 3:
        return "summary too short"
    if " ".join(summary_words) in " ".join(document_words):
        return "verbatim copy"
    if _support(summary_words, document_words) < _MIN_SUPPORT:
        return "summary not supported"
    return None


def _support(summary: Iterable[str], document: Iterable[str]) -> float:
    """Share of the summary's content words that occur in the document, singular and plural taken as one."""
    present = {_singular(word) for word in document}
    content = [word for word in summary if word not in _STOP_WORDS]
    return sum(_singular(word) in present for word in content) / len(content) if content else 0.0


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") else word
