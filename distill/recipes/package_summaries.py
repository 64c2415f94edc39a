"""The recipe `package_summaries`: a Debian package's description in, its one-line synopsis out.

Rebuilt on the user's machine from apt's lists (suites bookworm and trixie, main, English), since every text stands
under its own package's licence. Where apt is absent, a small bundled sample takes its place. Splits go by source
package name with digits removed, so that no family of packages stands on both sides.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path

from attar.distill.recipes._debian_lists import AptError, Description, fetch_lists, read_descriptions

SUITES = ("bookworm", "trixie")
SPLITS = ("train", "validation", "test")
PROMPT = "{document}\n\nOne-line summary:"

_MIN_WORDS, _MAX_WORDS = 20, 400
_HELD_OUT_PERCENT = 5
_HELD_OUT_PERCENT_OF_SAMPLE = 20  # a few hundred pairs: 5 % would be a dozen
_MIN_SUPPORT = 0.4
_NEAR_DUPLICATE = 0.3
_PART = re.compile(
    r"-(dev|doc|docs|data|dbg|dbgsym|common|examples|tests|source|headers|l10n|locale)$|-(dev|doc|dbg)-|^lib.*-perl-"
)
_EMPTY_SHELL = re.compile(r"transitional|meta-?package|(dummy|virtual|empty) package", re.IGNORECASE)
_WORD = re.compile(r"[a-z0-9][a-z0-9+#]*")
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

    def to_example(self) -> dict[str, str]:
        """The JSONL row that `attar distill` reads."""
        return {
            "prompt": PROMPT.format(document=self.document),
            "completion": f" {self.summary}",
            "package": self.package,
            "source": self.source,
        }


@dataclass
class RecipeReport:
    """What the recipe made: counts by stage, by reason of dropping and by split."""

    origin: str
    descriptions: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    pairs: int = 0
    sources: int = 0
    splits: dict[str, int] = field(default_factory=dict)


def build(
    folder: Path,
    *,
    sample: bool | None = None,
    max_words: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> RecipeReport:
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
    if max_words is not None:
        kept = [pair for pair in pairs if len(pair.document.split()) <= max_words]
        report.dropped[f"over {max_words} words"] = len(pairs) - len(kept)
        pairs = kept
    report.pairs, report.sources = len(pairs), len({pair.source for pair in pairs})
    by_split: dict[str, list[Pair]] = {name: [] for name in SPLITS}
    held_out = _HELD_OUT_PERCENT if report.origin.startswith("apt") else _HELD_OUT_PERCENT_OF_SAMPLE
    for pair in pairs:
        by_split[split_of(pair.source, held_out)].append(pair)
    for name, members in by_split.items():
        report.splits[name] = len(members)
        _write_atomically(folder / f"{name}.jsonl", (json.dumps(p.to_example(), ensure_ascii=False) for p in members))
    _write_atomically(folder / "recipe.json", [json.dumps(asdict(report), indent=2)])
    return report


def _collect(sample: bool | None, say: Callable[[str], None]) -> tuple[list[Pair], RecipeReport]:
    if not sample:
        try:
            return _from_apt(say)
        except AptError as error:
            if sample is False:
                raise
            say(f"{error}; using the bundled sample")
    pairs = list(read_sample())
    return pairs, RecipeReport(origin="bundled sample", descriptions=len(pairs))


def _from_apt(say: Callable[[str], None]) -> tuple[list[Pair], RecipeReport]:
    with tempfile.TemporaryDirectory(prefix="attar-apt-") as state:
        say("fetching package lists")
        lists = fetch_lists(Path(state), SUITES, ("en",))
        descriptions = read_descriptions(lists, SUITES, "en", say)
    say("cleaning")
    pairs, dropped = clean(descriptions)
    return pairs, RecipeReport(f"apt: {', '.join(SUITES)} main", len(descriptions), dict(dropped))


def read_sample() -> Iterator[Pair]:
    """The bundled pairs; each row of the file also names the licence of its package."""
    text = files("attar.distill.recipes").joinpath("package_summaries_sample.jsonl").read_text(encoding="utf-8")
    for line in text.splitlines():
        row = json.loads(line)
        yield Pair(row["package"], row["source"], row["document"], row["summary"])


def family_of(source: str) -> str:
    """Source name with digits and version separators removed: gcc-12 and gcc-13 are one family."""
    return re.sub(r"[-.]?\d+(\.\d+)*", "", source) or source


def split_of(source: str, held_out_percent: int = _HELD_OUT_PERCENT) -> str:
    """The split of a source package by a hash of its family; validation and test get `held_out_percent` each."""
    bucket = int.from_bytes(hashlib.sha256(family_of(source).encode()).digest()[:4], "big") % 100
    if bucket < 100 - 2 * held_out_percent:
        return "train"
    return "validation" if bucket < 100 - held_out_percent else "test"


def clean(descriptions: Sequence[Description]) -> tuple[list[Pair], Counter[str]]:
    """Keeps the descriptions whose synopsis summarises their text; counts the others by reason."""
    dropped: Counter[str] = Counter()
    kept: list[Pair] = []
    summaries: set[str] = set()
    openings: set[str] = set()
    shingles_of_family: dict[str, list[set[str]]] = {}
    for described in descriptions:
        document = "\n".join(described.paragraphs)
        reason = _reason_to_drop(described, document)
        words = _words(document)
        shingles = {" ".join(words[i : i + 3]) for i in range(len(words) - 2)}
        opening = " ".join(words[:25])
        summary_key = " ".join(_words(described.synopsis))
        relatives = shingles_of_family.setdefault(family_of(described.source), [])
        if reason is None and (opening in openings or _resembles(shingles, relatives)):
            reason = "near-duplicate"
        if reason is None and summary_key in summaries:
            reason = "repeated summary"
        if reason is not None:
            dropped[reason] += 1
            continue
        summaries.add(summary_key)
        openings.add(opening)
        relatives.append(shingles)
        kept.append(Pair(described.package, described.source, document, described.synopsis))
    return kept, dropped


def _reason_to_drop(described: Description, document: str) -> str | None:
    if _PART.search(described.package) or described.section in ("debug", "doc", "metapackages", "oldlibs"):
        return "part of another package"
    if _EMPTY_SHELL.search(described.synopsis) or _EMPTY_SHELL.search(document[:200]):
        return "transitional or meta package"
    if not _MIN_WORDS <= len(document.split()) <= _MAX_WORDS:
        return "document length"
    summary_words, document_words = _words(described.synopsis), _words(document)
    if len(summary_words) < 3:
        return "summary too short"
    if " ".join(summary_words) in " ".join(document_words):
        return "verbatim copy"
    if _support(summary_words, document_words) < _MIN_SUPPORT:
        return "summary not supported"
    return None


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _support(summary: Iterable[str], document: Iterable[str]) -> float:
    """Share of the summary's content words that occur in the document, singular and plural taken as one."""
    present = {_singular(word) for word in document}
    content = [word for word in summary if word not in _STOP_WORDS]
    return sum(_singular(word) in present for word in content) / len(content) if content else 0.0


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") else word


def _resembles(shingles: set[str], others: Iterable[set[str]]) -> bool:
    """Whether a document shares at least 30 % of its word triples (Jaccard) with one of its family."""
    return any(
        len(shingles & other) >= _NEAR_DUPLICATE * len(shingles | other) for other in others if shingles or other
    )


def _write_atomically(path: Path, lines: Iterable[str]) -> None:
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
