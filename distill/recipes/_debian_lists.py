"""Reads Debian's package lists through apt, with a configuration and a state folder of their own.

The system's settings and lists are never touched: container images often switch translations off, and a data set
must not depend on what a machine happens to have configured. Only the mirror and its keyring are taken from the
system's own sources.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_SOURCES = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d"))
_MIRROR = re.compile(r"(https?://\S+?/debian)/?(?=\s|$)", re.MULTILINE)
_SIGNED_BY = re.compile(r"[Ss]igned-[Bb]y[:=]\s*(/\S+?)(?=[\s\]]|$)")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class AptError(RuntimeError):
    """apt is absent, or could not bring the package lists."""


@dataclass(frozen=True)
class Description:
    """One package's description in one suite.

    Attributes:
      package: Binary package name.
      source: Source package name.
      section: Archive section, e.g. "net" or "libs".
      synopsis: The one-line description.
      paragraphs: The long description, one string a paragraph or list item, line breaks removed.
      md5: Description-md5, which ties translations to this text.
    """

    package: str
    source: str
    section: str
    synopsis: str
    paragraphs: tuple[str, ...]
    md5: str


@dataclass(frozen=True)
class Translation:
    """A description in another language; attributes as in `Description`."""

    synopsis: str
    paragraphs: tuple[str, ...]


def apt_mirror() -> tuple[str, Path]:
    """The Debian mirror and keyring of this system's apt sources.

    Raises:
      AptError: If apt is absent or no source names a Debian mirror.
    """
    if shutil.which("apt-get") is None:
        raise AptError("apt-get is not on this machine")
    for path in _source_files():
        text = path.read_text(errors="replace")
        mirror = _MIRROR.search("\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
        if mirror:
            signed_by = _SIGNED_BY.search(text)
            return mirror.group(1), Path(signed_by.group(1)) if signed_by else _KEYRING
    raise AptError("no apt source on this machine names a Debian mirror (a URL that ends in /debian)")


def _source_files() -> Iterator[Path]:
    for place in _SOURCES:
        if place.is_file():
            yield place
        elif place.is_dir():
            yield from sorted(p for p in place.iterdir() if p.suffix in (".list", ".sources"))


def fetch_lists(folder: Path, suites: tuple[str, ...], languages: tuple[str, ...]) -> Path:
    """Downloads the package lists of `suites` with translations into `folder`; returns the lists folder.

    Raises:
      AptError: If apt is absent or the download fails; the message ends with apt's own last line.
    """
    mirror, keyring = apt_mirror()
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "state/status").touch()
    sources = folder / "sources.list"
    sources.write_text("".join(f"deb [signed-by={keyring}] {mirror} {suite} main\n" for suite in suites))
    options = {
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "state/status",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Acquire::Languages": ",".join(languages),
        "Acquire::GzipIndexes": "false",
        "Acquire::Retries": "3",
        "APT::Sandbox::User": "",
    }
    _run_apt_update(options)
    return folder / "state/lists"


def _run_apt_update(options: Mapping[str, object]) -> None:
    flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    done = subprocess.run(["apt-get", "update", "--error-on=any", *flags], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise AptError(f"apt-get update failed: {lines[-1]}")


def read_stanzas(path: Path) -> Iterator[dict[str, str]]:
    """The stanzas of a Debian control file, continuation lines kept with their leading space."""
    fields: dict[str, str] = {}
    key = ""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            line = line.rstrip("\n")
            if not line:
                if fields:
                    yield fields
                fields, key = {}, ""
            elif line[0] in " \t":
                fields[key] += "\n" + line
            else:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
    if fields:
        yield fields


def read_descriptions(
    lists: Path, suites: tuple[str, ...], language: str, progress: Callable[[str], None] | None = None
) -> list[Description]:
    """Every distinct (package, text) of the suites in one language, in list order.

    Raises:
      AptError: If a suite's lists are not in the folder.
    """
    seen: set[tuple[str, str]] = set()
    found: list[Description] = []
    for suite in suites:
        if progress:
            progress(f"reading {suite}")
        packages = {stanza["Package"]: stanza for stanza in read_stanzas(_list_file(lists, suite, "Packages"))}
        for stanza in read_stanzas(_list_file(lists, suite, f"Translation-{language}")):
            described = _description(stanza, packages.get(stanza["Package"]), language)
            if described and (described.package, described.md5) not in seen:
                seen.add((described.package, described.md5))
                found.append(described)
    return found


def read_translations(
    lists: Path, suites: tuple[str, ...], language: str, progress: Callable[[str], None] | None = None
) -> dict[str, Translation]:
    """The suites' texts in one language by the Description-md5 of the English text that they translate.

    Raises:
      AptError: If a suite's list is not in the folder.
    """
    found: dict[str, Translation] = {}
    for suite in suites:
        if progress:
            progress(f"reading {suite} ({language})")
        for stanza in read_stanzas(_list_file(lists, suite, f"Translation-{language}")):
            text, md5 = stanza.get(f"Description-{language}"), stanza.get("Description-md5")
            if text and md5:
                found.setdefault(md5, Translation(*_synopsis_and_paragraphs(text)))
    return found


def _list_file(lists: Path, suite: str, ending: str) -> Path:
    matches = sorted(lists.glob(f"*_dists_{suite}_main_*{ending}"))
    if not matches:
        raise AptError(f"{lists}: no {ending} list of suite {suite}; the download was incomplete, run the recipe again")
    return matches[0]


def _description(stanza: Mapping[str, str], package: Mapping[str, str] | None, language: str) -> Description | None:
    text = stanza.get(f"Description-{language}")
    if text is None or package is None:
        return None
    synopsis, paragraphs = _synopsis_and_paragraphs(text)
    return Description(
        package=stanza["Package"],
        source=package.get("Source", stanza["Package"]).split(" ")[0],
        section=package.get("Section", "").split("/")[-1],
        synopsis=synopsis,
        paragraphs=paragraphs,
        md5=stanza.get("Description-md5", ""),
    )


def _synopsis_and_paragraphs(text: str) -> tuple[str, tuple[str, ...]]:
    synopsis, *rest = text.split("\n")
    return synopsis.strip(), tuple(_paragraphs(rest))


def _paragraphs(lines: list[str]) -> Iterator[str]:
    """Folds a long description: " ." ends a paragraph, a doubly indented or bulleted line starts an item."""
    current: list[str] = []
    for line in [*lines, " ."]:
        text = line.strip()
        starts_item = line.startswith("  ") and text[:1] in "*-+•o" and text[1:2] == " "
        if (text == "." or starts_item) and current:
            yield " ".join(current)
            current = []
        if text != ".":
            current.append(text)
