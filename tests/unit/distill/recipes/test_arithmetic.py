"""Word problems: chains that hold, splits that share nothing, and the same problems from the same seed."""

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attar.distill.answers import answers_correct, apply_calculator, chains_correct, final_answer, read_steps
from attar.distill.recipes import arithmetic
from attar.distill.recipes._story import Misfit, Problem, Schema, Story, make_problem
from attar.distill.recipes._story_schemas import SCHEMAS
from attar.distill.recipes._story_schemas_held_out import HELD_OUT_SCHEMAS
from attar.distill.recipes.arithmetic import ArithmeticConfig, TooFewProblemsError, build, make_splits, split_of
from attar.distill.records import parse_records

SMALL = ArithmeticConfig(train=300, held_out=40)


def key(problem: Problem) -> tuple[str, ...]:
    return (problem.schema, *problem.chain)


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Problem]]:
    return make_splits(SMALL)


def test_there_are_a_dozen_kinds_of_story_and_some_held_out() -> None:
    names = [schema.name for schema in (*SCHEMAS, *HELD_OUT_SCHEMAS)]
    assert len(set(names)) == len(names)
    assert len(SCHEMAS) >= 12
    assert len(HELD_OUT_SCHEMAS) >= 3


@pytest.mark.parametrize("schema", [*SCHEMAS, *HELD_OUT_SCHEMAS], ids=lambda schema: schema.name)
@given(steps=st.integers(arithmetic.MIN_STEPS, arithmetic.MAX_STEPS), seed=st.integers(0, 2**32))
def test_every_problem_can_be_checked(schema: Schema, steps: int, seed: int) -> None:
    try:
        problem = make_problem(schema, steps, random.Random(seed))
    except Misfit:
        return
    chain = read_steps(problem.answer)
    assert len(chain) == len(problem.chain) == problem.answer.count("<<") == steps
    assert all(step.holds and step.repeated for step in chain)
    assert final_answer(problem.answer) == chain[-1].result == problem.value
    assert problem.answer.splitlines()[-1] == f"#### {problem.value}"
    assert problem.question.endswith("?")
    assert not re.search(r"[{}\[\]]|  |\.\.", problem.question + problem.answer)


def test_steps_use_only_what_is_known(splits: dict[str, list[Problem]]) -> None:
    """Numbers of a chain come from the question or an earlier step, apart from halves, doubles, hundreds and ones."""
    for problem in splits["train"]:
        known = {float(n) for n in re.findall(r"\d+(?:\.\d+)?", problem.question)} | {1, 2, 100}
        for step in read_steps(problem.answer):
            used = {float(n) for n in re.findall(r"\d+(?:\.\d+)?", step.expression)}
            assert used <= known | {n + 1 for n in known}, problem
            known.add(float(step.value))


def test_splits_have_their_sizes_and_share_no_problem(splits: dict[str, list[Problem]]) -> None:
    assert {name: len(members) for name, members in splits.items()} == {
        "train": 300,
        "validation": 40,
        "test": 40,
        "test_held_out_schemas": 40,
    }
    keys = [key(problem) for members in splits.values() for problem in members]
    assert len(set(keys)) == len(keys)


def test_held_out_schemas_are_only_in_their_part(splits: dict[str, list[Problem]]) -> None:
    held_out = {schema.name for schema in HELD_OUT_SCHEMAS}
    assert {p.schema for p in splits["test_held_out_schemas"]} == held_out
    assert not held_out & {p.schema for name in ("train", "validation", "test") for p in splits[name]}


def test_other_seeds_keep_the_same_sides(splits: dict[str, list[Problem]]) -> None:
    other = make_splits(ArithmeticConfig(train=300, held_out=40, seed=1))
    assert other["train"] != splits["train"]
    train = {key(problem) for problem in (*splits["train"], *other["train"])}
    test = {key(problem) for problem in (*splits["test"], *other["test"])}
    assert not train & test
    assert {split_of(problem) for problem in other["train"]} == {"train"}


def test_a_larger_set_begins_with_the_smaller_one(splits: dict[str, list[Problem]]) -> None:
    larger = make_splits(ArithmeticConfig(train=350, held_out=50))
    assert all(larger[name][: len(members)] == members for name, members in splits.items())


def test_steps_are_controlled_and_spread() -> None:
    splits = make_splits(ArithmeticConfig(train=200, held_out=10, min_steps=3, max_steps=5))
    counts = [len(problem.chain) for problem in splits["train"]]
    assert set(counts) == {3, 4, 5}
    assert min(counts.count(steps) for steps in (3, 4, 5)) > 40


@pytest.mark.parametrize(("low", "high"), [(1, 3), (4, 3), (2, 7)])
def test_steps_out_of_range_are_refused(low: int, high: int) -> None:
    with pytest.raises(ValueError, match=f"2 <= min_steps <= max_steps <= 6, got {low} and {high}"):
        ArithmeticConfig(min_steps=low, max_steps=high)


def test_problems_that_run_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_one(story: Story) -> None:
        story.tell("There are 2 and 3.", "How many?", "There are [2+3] things.")
        story.tell("There is one more.", "How many?", "Now there are [5+1] things.")

    monkeypatch.setattr(arithmetic, "SCHEMAS", (Schema("only", only_one),))
    with pytest.raises(TooFewProblemsError, match="only 1 distinct problems of 2 to 2 steps"):
        make_splits(ArithmeticConfig(train=5, held_out=5, min_steps=2, max_steps=2))


def test_a_story_refuses_values_that_are_not_whole() -> None:
    story = Story(random.Random(0))
    with pytest.raises(Misfit):
        story.tell("", "", "There are [5/2].")


def test_build_writes_rows_that_the_loader_reads(tmp_path: Path) -> None:
    said: list[str] = []
    report = build(tmp_path / "new", SMALL, progress=said.append)
    assert said
    content = (tmp_path / "new" / "test.jsonl").read_bytes()
    records = list(parse_records(tmp_path, content.splitlines()))
    completions = [record.completion or "" for record in records]
    assert len(records) == report.splits["test"] == 40
    assert all(record.prompt.startswith("Question: ") and record.prompt.endswith("?\nAnswer:") for record in records)
    assert all(completion.startswith(" ") for completion in completions)
    assert answers_correct(completions, completions).all()
    assert chains_correct(completions).all()
    assert [apply_calculator(text) for text in completions] == completions
    row = json.loads(content.splitlines()[0])
    assert set(row) == {"prompt", "completion", "schema", "steps"}


def test_recipe_json_says_how_it_was_made(tmp_path: Path) -> None:
    report = build(tmp_path, ArithmeticConfig(train=20, held_out=5, seed=7))
    written = json.loads((tmp_path / "recipe.json").read_text())
    assert written["recipe"] == "arithmetic"
    assert written["options"] == {"train": 20, "held_out": 5, "min_steps": 2, "max_steps": 6, "seed": 7}
    assert written["pairs"] == sum(written["schemas"].values()) == report.pairs == 35
    first = (tmp_path / "train.jsonl").read_bytes()
    build(tmp_path, ArithmeticConfig(train=20, held_out=5, seed=7))
    assert (tmp_path / "train.jsonl").read_bytes() == first
