"""The recipe's cleaning rules, its splits, and what happens where apt is absent."""

import json
from pathlib import Path

import pytest

from attar.distill.recipes import _debian_lists, package_summaries
from attar.distill.recipes._debian_lists import AptError, Description, read_descriptions
from attar.distill.recipes._packages import SPLITS, family_of, split_of
from attar.distill.recipes.package_summaries import build, clean, read_sample

TEXT = (
    "Frobnicate reads widget tables from disk and prints them as aligned columns. It understands several "
    "encodings, sorts by any column and can follow a growing table while another process writes it."
)


def describe(
    package: str = "frob", synopsis: str = "aligned printer of widget tables", text: str = TEXT
) -> Description:
    return Description(package, package, "utils", synopsis, (text,), "0" * 32)


@pytest.mark.parametrize(
    ("described", "reason"),
    [
        (describe("frob-dev"), "part of another package"),
        (describe("frob-doc"), "part of another package"),
        (describe(synopsis="transitional package for frob"), "transitional or meta package"),
        (describe(text="Too short to summarise."), "document length"),
        (describe(text=TEXT + " word" * 400), "document length"),
        (describe(synopsis="prints them as aligned columns"), "verbatim copy"),
        (describe(synopsis="quantum llama orchestration daemon"), "summary not supported"),
        (describe(synopsis="tables"), "summary too short"),
    ],
)
def test_each_rule_drops_its_kind(described: Description, reason: str) -> None:
    kept, dropped = clean([described])
    assert kept == []
    assert dropped == {reason: 1}


def test_clean_keeps_one_of_a_family_and_one_of_a_summary() -> None:
    other = TEXT.replace("widget", "gadget").replace("Frobnicate", "Gizmo") + " Unlike its rivals it needs no setup."
    near = describe("frob2", "printer of widget tables in columns", TEXT + " This is the second version.")
    kept, dropped = clean([describe(), near, describe("gizmo", text=other)])
    assert [pair.package for pair in kept] == ["frob"]
    assert dropped == {"near-duplicate": 1, "repeated summary": 1}


def test_versions_of_a_source_fall_on_one_side() -> None:
    assert family_of("gcc-12") == family_of("gcc-13") == "gcc"
    assert family_of("7zip") == "zip"
    assert len({split_of(f"python3.{minor}") for minor in range(20)}) == 1


def test_splits_have_the_stated_shares() -> None:
    names = [f"{a}{b}{c}" for a in "abcdefghijklmnop" for b in "abcdefghijklmnop" for c in "abcdefghijklmnop"]
    shares = {name: sum(split_of(n) == name for n in names) / len(names) for name in SPLITS}
    assert shares == pytest.approx({"train": 0.9, "validation": 0.05, "test": 0.05}, abs=0.01)


def test_sample_is_clean_and_licensed() -> None:
    pairs = list(read_sample())
    assert len(pairs) >= 200
    path = Path(package_summaries.__file__).with_name("package_summaries_sample.jsonl")
    assert all(json.loads(line)["licence"] for line in path.read_text().splitlines())


def test_build_falls_back_to_the_sample_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_debian_lists.shutil, "which", lambda _: None)
    said: list[str] = []
    report = build(tmp_path, progress=said.append)
    assert report.origin == "bundled sample"
    assert any("apt-get is not on this machine" in line for line in said)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert len(rows) == report.splits["train"] > 100
    assert rows[0]["prompt"].endswith("One-line summary:")
    assert rows[0]["completion"].startswith(" ")
    assert not list(tmp_path.glob("*.part"))


def test_build_demands_apt_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_debian_lists.shutil, "which", lambda _: None)
    with pytest.raises(AptError, match="not on this machine"):
        build(tmp_path, sample=False)


def test_reads_lists_as_apt_stores_them(tmp_path: Path) -> None:
    stem = "mirror_debian_dists_bookworm_main"
    (tmp_path / f"{stem}_binary-amd64_Packages").write_text(
        "Package: frob\nSource: frobnicate (1.2)\nSection: utils\n\nPackage: other\nSection: net\n"
    )
    (tmp_path / f"{stem}_i18n_Translation-en").write_text(
        "Package: frob\nDescription-md5: abc\nDescription-en: prints tables\n First line\n goes on.\n .\n"
        "  * an item\n    of two lines\n  * another\n\nPackage: absent\nDescription-md5: d\nDescription-en: x\n y\n"
    )
    (found,) = read_descriptions(tmp_path, ("bookworm",), "en")
    assert (found.package, found.source, found.section, found.synopsis) == (
        "frob",
        "frobnicate",
        "utils",
        "prints tables",
    )
    assert found.paragraphs == ("First line goes on.", "* an item of two lines", "* another")


def test_missing_list_names_the_suite(tmp_path: Path) -> None:
    with pytest.raises(AptError, match="no Packages list of suite trixie"):
        read_descriptions(tmp_path, ("trixie",), "en")


def test_max_words_leaves_longer_documents_out(tmp_path: Path) -> None:
    report = build(tmp_path, sample=True, max_words=40)
    files = [tmp_path / f"{name}.jsonl" for name in SPLITS]
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    lengths = [len(row["prompt"].removesuffix("\n\nOne-line summary:").split()) for row in rows]
    assert max(lengths) <= 40
    assert report.dropped["over 40 words"] == sum(len(p.document.split()) > 40 for p in read_sample()) > 0
