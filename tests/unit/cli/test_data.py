"""`attar data`: each recipe's report as a table and as JSON, and options that reach the recipe."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from attar.cli import main
from attar.distill.recipes import package_translations
from attar.distill.recipes._debian_lists import Description, Translation


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["data", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_arithmetic_as_json(tmp_path: Path) -> None:
    sizes = ("--train", 30, "--held-out", 4, "--min-steps", 3, "--max-steps", 3, "--seed", 5)
    report = json.loads(run("arithmetic", *sizes, "--json", "--out", tmp_path))
    assert report["options"] == {"train": 30, "held_out": 4, "min_steps": 3, "max_steps": 3, "seed": 5}
    assert report == json.loads((tmp_path / "recipe.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [row["steps"] for row in rows] == [3] * 30


def test_arithmetic_as_a_table(tmp_path: Path) -> None:
    printed = run("arithmetic", "--train", 30, "--held-out", 4, "--out", tmp_path)
    assert "arithmetic (made from the seed)" in printed
    assert printed.split("pairs")[1].split()[0] == "42"
    assert f"wrote {tmp_path}" in printed.replace("\n", "")


def test_summaries_from_the_sample(tmp_path: Path) -> None:
    report = json.loads(run("package_summaries", "--sample", "--max-words", 60, "--json", "--out", tmp_path))
    assert report["origin"] == "bundled sample"
    assert report["options"] == {"max_words": 60}
    assert report["dropped"]["over 60 words"] > 0


def test_translations_of_the_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    english = Description("frob", "frob", "utils", "prints tables of widgets", (), "m")
    french = Translation("affiche des tableaux de pièces", ())
    asked: list[str] = []

    def read(language: str, _: object) -> tuple[list[Description], dict[str, Translation]]:
        asked.append(language)
        return [english], {"m": french}

    monkeypatch.setattr(package_translations, "_read", read)
    report = json.loads(run("package_translations", "--pair", "en-fr", "--json", "--out", tmp_path))
    assert asked == ["fr"]
    assert (report["options"]["pair"], report["pairs"]) == ("en-fr", 1)


def test_help_names_each_recipe_and_what_it_reads() -> None:
    printed = " ".join(run("--help").split())
    for words in ("package_summaries (--max-words", "package_translations (--pair", "arithmetic (--train", "GSM8K"):
        assert words in printed
