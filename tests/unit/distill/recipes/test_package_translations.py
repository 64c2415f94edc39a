"""Pairs of languages from apt's lists: what is aligned, what is left out, and what happens where apt is absent."""

import json
import shutil
from pathlib import Path

import pytest

from attar.distill.recipes import _debian_lists, package_translations
from attar.distill.recipes._debian_lists import AptError, Description, Translation, read_translations
from attar.distill.recipes._packages import SUITES, split_of
from attar.distill.recipes.package_translations import align, build, why_unfit

ENGLISH = ("prints tables of widgets", "Frob reads widget tables from a disk.", "* sorts them by column")
GERMAN = ("gibt Tabellen von Teilen aus", "Frob liest Tabellen von Teilen von einer Platte.", "* sortiert nach Spalten")


def describe(package: str = "frob", texts: tuple[str, ...] = ENGLISH, md5: str = "m") -> Description:
    return Description(package, package, "utils", texts[0], texts[1:], md5)


def translate(texts: tuple[str, ...] = GERMAN) -> dict[str, Translation]:
    return {"m": Translation(texts[0], texts[1:])}


def test_synopsis_paragraphs_and_items_become_pairs() -> None:
    pairs, dropped = align([describe()], translate())
    assert [(pair.text, pair.translation) for pair in pairs] == [
        ("prints tables of widgets", "gibt Tabellen von Teilen aus"),
        ("Frob reads widget tables from a disk.", "Frob liest Tabellen von Teilen von einer Platte."),
        ("sorts them by column", "sortiert nach Spalten"),
    ]
    assert not dropped


def test_runs_of_blanks_become_one() -> None:
    pairs, _ = align([describe(texts=("reads  two tables", "One."))], translate(("liest zwei  Tabellen", "Eine.")))
    assert (pairs[0].text, pairs[0].translation) == ("reads two tables", "liest zwei Tabellen")


def test_prompt_and_completion() -> None:
    pairs, _ = align([describe()], translate())
    assert pairs[0].to_example("de") == {
        "prompt": "prints tables of widgets\n\nGerman translation:",
        "completion": " gibt Tabellen von Teilen aus",
        "package": "frob",
        "source": "frob",
    }


@pytest.mark.parametrize(
    ("described", "translations", "reason"),
    [
        (describe("frob-dev"), translate(), "part of another package"),
        (describe(texts=("transitional package for frob", ENGLISH[1])), translate(), "transitional or meta package"),
        (describe(md5="other"), translate(), "description not translated"),
    ],
)
def test_descriptions_that_are_left_out(
    described: Description, translations: dict[str, Translation], reason: str
) -> None:
    assert align([described], translations) == ([], {reason: 1})


@pytest.mark.parametrize("texts", [GERMAN[:2], (*GERMAN[:2], GERMAN[2].removeprefix("* ")), (*GERMAN, "Mehr davon.")])
def test_texts_cut_differently_give_only_their_synopsis(texts: tuple[str, ...]) -> None:
    pairs, dropped = align([describe()], translate(texts))
    assert [pair.translation for pair in pairs] == [GERMAN[0]]
    assert dropped == {"paragraphs cut differently": 1}


def test_sister_packages_give_a_phrase_once() -> None:
    sisters = [
        describe(name, (f"widgets for {name}", f"This installs all of the widgets for {name}."))
        for name in ("ab", "cd")
    ]
    pairs, dropped = align(sisters, translate(("Teile fuer ihn", "Dies installiert alle Teile fuer ihn.")))
    assert [pair.package for pair in pairs] == ["ab", "ab"]
    assert dropped == {"near-duplicate": 2}


@pytest.mark.parametrize(
    ("text", "translation", "reason"),
    [
        ("reads two tables", "liest zwei Tabellen", None),
        ("reads 1,000.5 tables at once", "liest 1.000,5 Tabellen auf einmal", None),
        ("a table", "eine Tabelle", "length"),
        ("=== --- ===", "=== --- ===", "length"),
        ("word " * 151, "Wort " * 151, "length"),
        ("reads tables of widgets from disks", "liest sie", "lengths too different"),
        ("reads two tables", "liest zwei Tabellen und noch sehr vieles andere mehr", "lengths too different"),
        ("reads tables of widgets", "reads tables of Widgets", "left in English"),
        ("reads version 2 tables", "liest Tabellen der Version 3", "numbers differ"),
    ],
)
def test_pairs_that_do_not_translate_are_left_out(text: str, translation: str, reason: str | None) -> None:
    assert why_unfit(text, translation) == reason


def write_lists(folder: Path) -> Path:
    """Package lists of the recipe's suites as apt stores them, four packages each."""
    folder.mkdir(parents=True)
    for suite in SUITES:
        stem = folder / f"mirror_debian_dists_{suite}_main"
        packages, english, german = [], [], []
        for name, number in (("apple", "one"), ("pear", "two"), ("plum", "three"), ("fig", "four")):
            head = f"Package: {name}\nDescription-md5: {name}{suite}\n"
            packages.append(f"Package: {name}\nSection: utils\n")
            english.append(
                f"{head}Description-en: counts {number} kinds of things\n It counts {number}\n of them in all.\n"
            )
            german.append(f"{head}Description-de: zählt {number}erlei Dinge im Ganzen\n Es zählt {number}\n davon.\n")
        Path(f"{stem}_binary-amd64_Packages").write_text("\n".join(packages))
        Path(f"{stem}_i18n_Translation-en").write_text("\n".join(english))
        Path(f"{stem}_i18n_Translation-de").write_text("\n".join(german))
    return folder


def read_rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_translations_are_read_by_the_hash_of_their_english(tmp_path: Path) -> None:
    lists = write_lists(tmp_path / "lists")
    found = read_translations(lists, ("bookworm",), "de")
    assert list(found) == ["applebookworm", "pearbookworm", "plumbookworm", "figbookworm"]
    assert found["figbookworm"] == Translation("zählt fourerlei Dinge im Ganzen", ("Es zählt four davon.",))
    with pytest.raises(AptError, match="no Translation-fr list of suite bookworm"):
        read_translations(lists, ("bookworm",), "fr")


def test_build_writes_splits_and_their_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def fetch(folder: Path, suites: tuple[str, ...], languages: tuple[str, ...]) -> Path:
        asked.append((*suites, *languages))
        return write_lists(folder / "state/lists")

    monkeypatch.setattr(package_translations, "fetch_lists", fetch)
    out = tmp_path / "out"
    report = build(out, pair="en-de", max_words=5)
    assert asked == [("bookworm", "trixie", "en", "de")]
    rows = {name: read_rows(out / f"{name}.jsonl") for name in report.splits}
    assert all(split_of(row["source"]) == name for name, members in rows.items() for row in members)
    assert sum(map(len, rows.values())) == report.pairs == 4
    written = json.loads((out / "recipe.json").read_text())
    assert written["options"] == {"pair": "en-de", "max_words": 5}
    assert written["dropped"] == {"near-duplicate": 8, "over 5 words": 4}
    assert written["origin"] == "apt: bookworm, trixie main"


def test_apt_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_debian_lists.shutil, "which", lambda _: None)
    with pytest.raises(AptError, match="apt-get is not on this machine; package_translations needs apt"):
        build(tmp_path)


@pytest.mark.network
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt")
def test_real_lists_give_tens_of_thousands_of_pairs(tmp_path: Path) -> None:
    report = build(tmp_path, pair="en-fr")
    assert report.pairs > 20_000
