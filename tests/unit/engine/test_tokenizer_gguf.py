"""Vocabularies inside GGUF files, and the way from a Hugging Face folder into one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from attar.engine.tokenizer import TokenizerError, gguf_tokenizer_metadata, load_tokenizer, save_tokenizer

if TYPE_CHECKING:
    from tests.unit.conftest import WriteGguf

RULES = ["gpt-2", "smollm", "llama-bpe", "qwen2"]


@pytest.mark.parametrize("rule", RULES)
def test_byte_level_ids_survive_the_gguf(
    rule: str, byte_level_folders: dict[str, Path], write_gguf: WriteGguf, varied_texts: list[str]
) -> None:
    metadata = gguf_tokenizer_metadata(byte_level_folders[rule])
    assert metadata["tokenizer.ggml.pre"] == rule
    source, loaded = load_tokenizer(byte_level_folders[rule]), load_tokenizer(write_gguf(metadata))
    for text in varied_texts:
        assert loaded.encode(text) == source.encode(text), text
        assert loaded.encode(text, parse_special=False) == source.encode(text, parse_special=False), text
    assert loaded.specials == source.specials
    assert loaded.fingerprint() == source.fingerprint()


@pytest.mark.parametrize("kind", ["plain", "prefixed"])
def test_sentencepiece_ids_survive_the_gguf(
    kind: str, sentencepiece_models: dict[str, Path], write_gguf: WriteGguf, varied_texts: list[str]
) -> None:
    source = load_tokenizer(sentencepiece_models[kind])
    loaded = load_tokenizer(write_gguf(gguf_tokenizer_metadata(sentencepiece_models[kind])))
    for text in varied_texts:
        assert loaded.encode(text) == source.encode(text), text
        assert loaded.decode(loaded.encode(text)) == source.decode(source.encode(text)), text
    assert loaded.specials == source.specials
    assert loaded.fingerprint() == source.fingerprint()


def test_the_metadata_of_a_gguf_is_passed_on(byte_level_folders: dict[str, Path], write_gguf: WriteGguf) -> None:
    metadata = gguf_tokenizer_metadata(byte_level_folders["llama-bpe"])
    assert gguf_tokenizer_metadata(write_gguf(metadata)) == metadata


def test_a_student_of_a_gguf_teacher_gets_a_folder(
    sentencepiece_models: dict[str, Path], write_gguf: WriteGguf, tmp_path: Path, varied_texts: list[str]
) -> None:
    teacher = load_tokenizer(write_gguf(gguf_tokenizer_metadata(sentencepiece_models["plain"])))
    save_tokenizer(teacher, tmp_path / "student")
    student = load_tokenizer(tmp_path / "student")
    assert student.fingerprint() == teacher.fingerprint()
    assert student.specials == teacher.specials
    assert [student.encode(t) for t in varied_texts[:500]] == [teacher.encode(t) for t in varied_texts[:500]]
    # and back again: the scores are found from the merges
    back = load_tokenizer(write_gguf(gguf_tokenizer_metadata(tmp_path / "student")))
    assert [back.encode(t) for t in varied_texts[:500]] == [teacher.encode(t) for t in varied_texts[:500]]


def test_merges_ordered_by_id_keep_their_order(
    sentencepiece_models: dict[str, Path], write_gguf: WriteGguf, tmp_path: Path, varied_texts: list[str]
) -> None:
    """Gemma 2's tokenizer.json ranks the splits of a piece by id; GGUF scores alone would lose that."""
    metadata = gguf_tokenizer_metadata(sentencepiece_models["plain"]) | {"attar.tokenizer.tie_order": "id"}
    by_id, by_length = load_tokenizer(write_gguf(metadata)), load_tokenizer(sentencepiece_models["plain"])
    assert any(by_id.encode(text) != by_length.encode(text) for text in varied_texts)
    save_tokenizer(by_id, tmp_path / "by_id")
    assert gguf_tokenizer_metadata(tmp_path / "by_id")["attar.tokenizer.tie_order"] == "id"
    assert "attar.tokenizer.tie_order" not in gguf_tokenizer_metadata(sentencepiece_models["plain"])


def test_spaces_of_user_defined_pieces_are_written_plainly(sentencepiece_models: dict[str, Path]) -> None:
    """llama.cpp looks for user-defined pieces in the text as it was typed."""
    tokens = gguf_tokenizer_metadata(sentencepiece_models["plain"])["tokenizer.ggml.tokens"]
    assert "  " in tokens
    assert "\u2581\u2581" not in tokens


def test_turn_ends_are_found_by_name(byte_level_folders: dict[str, Path], write_gguf: WriteGguf) -> None:
    metadata = gguf_tokenizer_metadata(byte_level_folders["smollm"]) | {"tokenizer.ggml.eos_token_id": 0}
    assert load_tokenizer(write_gguf(metadata)).eos_token_ids == (0, 2)
    metadata |= {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 0xFFFFFFFF}
    assert load_tokenizer(write_gguf(metadata)).eos_token_ids == (0, 5, 2)


def _without(key: str) -> Any:
    return lambda metadata: metadata.pop(key)


def _with(key: str, value: Any) -> Any:
    return lambda metadata: metadata.update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("tokenizer.ggml.model"), "model must be 'gpt2' or 'llama', got None"),
        (_with("tokenizer.ggml.model", "bert"), "model must be 'gpt2' or 'llama', got 'bert'"),
        (_with("tokenizer.ggml.pre", "viking"), "pre must be one of default, gpt-2, .* got 'viking'"),
        (_without("tokenizer.ggml.tokens"), "tokens must be an array, got nothing"),
        (_with("tokenizer.ggml.tokens", [1, 2]), "tokens must hold strings, got .* at index 0"),
        (_with("tokenizer.ggml.token_type", [1]), "an entry per token, got 1 for 901 tokens"),
        (_with("tokenizer.ggml.merges", ["zz~ qq~"]), "must join tokens of the vocabulary, got 'zz~ qq~' at index 0"),
        (_with("tokenizer.ggml.bos_token_id", 901), "bos_token_id must be a token id below 901, got 901"),
        (lambda m: m["tokenizer.ggml.tokens"].__setitem__(7, "a"), "tokens must differ, got 'a' at ids"),
    ],
)
def test_damaged_vocabularies_are_named(
    change: Any, message: str, byte_level_folders: dict[str, Path], write_gguf: WriteGguf
) -> None:
    metadata = gguf_tokenizer_metadata(byte_level_folders["smollm"])
    change(metadata)
    path = write_gguf(metadata)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(path)
    assert str(caught.value).startswith(str(path))


def _edit(folder: Path, tmp_path: Path, change: Any) -> Path:
    description = json.loads((folder / "tokenizer.json").read_text())
    change(description)
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(normalizer={"type": "NFC"}), "normalizer 'NFC' cannot be kept in a GGUF"),
        (lambda d: d["pre_tokenizer"].update(add_prefix_space=True), "pre-tokenizer must be one of the rules"),
        (lambda d: d["model"].update(ignore_merges=True), "ignore_merges must be False for the splitting rule 'gpt-2'"),
        (lambda d: d["added_tokens"][0].update(lstrip=True), "strips blanks"),
    ],
)
def test_what_a_gguf_cannot_keep_is_refused(
    change: Any, message: str, byte_level_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = _edit(byte_level_folders["gpt-2"], tmp_path, change)
    with pytest.raises(TokenizerError, match=message):
        gguf_tokenizer_metadata(folder)
