"""A teacher's answers as data: what is written, what is dropped, and going on with parts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from attar.distill import write_completions as module
from attar.distill.data import DataError, Limits, load_examples
from attar.distill.part_folder import PartError
from attar.distill.write_completions import WriteConfig, write_completions
from attar.engine.checkpoint import load_config, load_model, save_model
from attar.engine.generate import generate
from attar.engine.sampling import GREEDY
from attar.engine.transformer import init_params


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    """A model that ends some of its answers and not others: the end token's embedding is large."""
    shape = load_config(teacher_folder)
    folder = tmp_path_factory.mktemp("writer") / "writer"
    params = init_params(shape, jax.random.key(5))
    params["embed_tokens"] = params["embed_tokens"].at[2].multiply(-12.0)
    save_model(folder, shape, params, teacher_folder, {})
    return folder


@pytest.fixture(scope="module")
def config(writer: Path, data_file: Path) -> WriteConfig:
    return WriteConfig((str(data_file),), str(writer), samples=6, max_new_tokens=8, batch_size=2, part_examples=2)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, config: WriteConfig) -> Path:
    path = tmp_path_factory.mktemp("written") / "answers.jsonl"
    write_completions(config, path)
    return path


def test_answers_stand_behind_their_prompts_and_unfinished_ones_nowhere(written: Path, data_file: Path) -> None:
    found, asked = rows(written), rows(data_file)
    assert [row["line"] for row in found] == sorted(row["line"] for row in found)
    assert all(row["prompt"] == asked[row["line"] - 1]["prompt"] for row in found)
    told = json.loads(written.with_suffix(".provenance.json").read_text())
    assert told["written"] == len(found)
    assert 0 < told["dropped_unfinished"] == 5 * 6 - len(found)
    assert told["temperature"] == 1.0
    assert not written.with_name("answers.jsonl.parts").exists()


def test_answers_are_training_data(written: Path, writer: Path) -> None:
    data = load_examples(written, load_model(writer).tokenizer, Limits(56, 16))
    assert len(data.examples) == len(rows(written))
    assert all(example.completion[-1] == 2 for example in data.examples)


def test_greedy_answers_are_the_models(tmp_path: Path, config: WriteConfig, writer: Path) -> None:
    model = load_model(writer)
    path = tmp_path / "greedy.jsonl"
    expected = {}
    data = load_examples(Path(config.data[0]), model.tokenizer, Limits(56, 8))
    for example in data.examples:
        said = generate(
            model.params,
            model.config,
            example.prompt[None],
            np.array([len(example.prompt)], np.int32),
            max_new_tokens=8,
            key=jax.random.key(0),
            sampling=GREEDY,
        )
        tokens = np.asarray(said.tokens)[0, : int(said.lengths[0])].tolist()
        if tokens[-1] == 2:
            expected[example.line] = model.tokenizer.decode(tokens[:-1])
    assert expected
    write_completions(replace(config, temperature=0.0, samples=1), path)
    assert {row["line"]: row["completion"] for row in rows(path)} == expected


def test_stopped_and_gone_on_with_equals_uninterrupted(
    tmp_path: Path, config: WriteConfig, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "answers.jsonl"
    kept = module.write_part

    def stop(part: Path, content: Any) -> None:
        if part.name == "part_00001.jsonl":
            raise KeyboardInterrupt
        kept(part, content)

    monkeypatch.setattr(module, "write_part", stop)
    with pytest.raises(KeyboardInterrupt):
        write_completions(config, path)
    monkeypatch.undo()
    assert not path.exists()
    with pytest.raises(PartError, match=r"begun under other settings \(seed was 0, is 1\)"):
        write_completions(replace(config, seed=1), path)
    write_completions(config, path)
    assert path.read_bytes() == written.read_bytes()
    with pytest.raises(PartError, match="is there already"):
        write_completions(config, path)


def test_what_has_no_prompts_is_refused(tmp_path: Path, config: WriteConfig) -> None:
    text = tmp_path / "story.jsonl"
    text.write_text('{"text": "Once upon a time."}\n')
    with pytest.raises(DataError, match="plain text"):
        write_completions(replace(config, data=(str(text),)), tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match="samples must be 1 where answers are greedy"):
        replace(config, temperature=0.0)
