"""Tokenizers out of Hugging Face folders, and what is written back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend

from attar.engine.tokenizer import TokenizerError, load_tokenizer, save_tokenizer


@pytest.fixture
def folder(byte_level_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of one folder that a test may change."""
    return Path(shutil.copytree(byte_level_folders["smollm"], tmp_path / "model"))


def test_ids_are_those_of_the_tokenizers_library(folder: Path, varied_texts: list[str]) -> None:
    tokenizer, backend = load_tokenizer(folder), Backend.from_file(str(folder / "tokenizer.json"))
    for text in varied_texts:
        assert tokenizer.encode(text) == backend.encode(text, add_special_tokens=False).ids, text


def test_text_survives_a_round_trip(folder: Path, varied_texts: list[str]) -> None:
    tokenizer = load_tokenizer(folder)
    for text in varied_texts:
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


def test_settings_come_from_the_config(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids, tokenizer.pad_token_id) == (1, (2,), None)
    assert not tokenizer.add_bos
    assert tokenizer.chat_template is not None
    assert tokenizer.vocab_size == 901
    assert (tokenizer.token_text(2), tokenizer.token_text(None)) == ("<|im_end|>", None)


def test_the_generation_config_adds_ends(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    assert load_tokenizer(folder).eos_token_ids == (2, 0)


def test_a_template_file_wins_over_the_config(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("from the file")
    assert load_tokenizer(folder).chat_template == "from the file"


def test_the_default_of_named_templates_is_taken(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert load_tokenizer(folder).chat_template == "d"


def test_special_tokens_are_added_where_the_config_asks(folder: Path) -> None:
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": True, "add_eos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("a", add_special=True) == [1, *tokenizer.encode("a"), 2]


def test_control_tokens_are_plain_text_unless_parsed(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("a<|im_end|>")[-1] == 2
    plain = tokenizer.encode("a<|im_end|>", parse_special=False)
    assert 2 not in plain
    assert tokenizer.decode(plain) == "a<|im_end|>"
    assert tokenizer.encode("a<|im_end|>")[-1] == 2  # the switch is back


def test_decoding_leaves_control_tokens_out(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("<|im_start|>hi<|im_end|>")
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>hi<|im_end|>"


def test_token_bytes_join_to_the_text(folder: Path, varied_texts: list[str]) -> None:
    tokenizer = load_tokenizer(folder)
    for text in varied_texts[:200]:
        assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()


@pytest.mark.parametrize("token_id", [-1, 901])
def test_an_id_outside_the_vocabulary_is_an_error(folder: Path, token_id: int) -> None:
    with pytest.raises(TokenizerError, match=f"below the vocabulary size 901, got {token_id}"):
        load_tokenizer(folder).decode([token_id])


def test_a_lone_surrogate_is_an_error(folder: Path) -> None:
    with pytest.raises(TokenizerError, match="lone surrogate at index 1"):
        load_tokenizer(folder).encode("a\ud800")


def test_fingerprints_tell_vocabularies_apart(byte_level_folders: dict[str, Path], folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.fingerprint() == load_tokenizer(byte_level_folders["smollm"]).fingerprint()
    assert tokenizer.fingerprint() != load_tokenizer(byte_level_folders["llama-bpe"]).fingerprint()
    description = json.loads((folder / "tokenizer.json").read_text())
    vocab = description["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (folder / "tokenizer.json").write_text(json.dumps(description))
    assert tokenizer.fingerprint() != load_tokenizer(folder).fingerprint()


@pytest.mark.parametrize("rule", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_a_saved_tokenizer_is_the_same(
    rule: str, byte_level_folders: dict[str, Path], tmp_path: Path, varied_texts: list[str]
) -> None:
    tokenizer = load_tokenizer(byte_level_folders[rule])
    save_tokenizer(tokenizer, tmp_path / "out")
    again = load_tokenizer(tmp_path / "out")
    assert again.specials == tokenizer.specials
    assert again.fingerprint() == tokenizer.fingerprint()
    assert [again.encode(t) for t in varied_texts[:300]] == [tokenizer.encode(t) for t in varied_texts[:300]]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def test_saving_removes_another_models_template(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    out = tmp_path / "out"
    out.mkdir()
    (out / "chat_template.jinja").write_text("old")
    save_tokenizer(load_tokenizer(folder), out)
    assert load_tokenizer(out).chat_template is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "not a tokenizer.json"),
        ("tokenizer_config.json", "[1]", "tokenizer_config.json must hold a JSON object, got list"),
        ("tokenizer_config.json", "{", "tokenizer_config.json must be JSON"),
        ("tokenizer_config.json", '{"eos_token": "<no>"}', "eos_token '<no>', which the vocabulary lacks"),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template must be a string"),
        ("generation_config.json", '{"eos_token_id": [5000]}', "token ids below 901, got 5000"),
    ],
)
def test_damaged_files_are_named(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(folder)
    assert str(caught.value).startswith(str(folder))


def test_a_folder_without_a_tokenizer_says_what_to_copy(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json or tokenizer\.model here; copy"):
        load_tokenizer(tmp_path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no tokenizer"):
        load_tokenizer(tmp_path / "absent")
