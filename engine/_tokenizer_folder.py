"""Reads and writes the settings that lie beside a Hugging Face tokenizer: special ids, BOS rule, chat template."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import tokenizers

from attar.engine._fast_tokenizer import FastTokenizer, SpecialTokens
from attar.engine._vocabulary import TokenizerError, Vocabulary, end_token_ids

_NO_LENGTH_LIMIT = int(1e30)  # what transformers writes where a tokenizer has no limit of its own


def settings_of_vocabulary(vocabulary: Vocabulary) -> SpecialTokens:
    """The settings inside a GGUF."""
    control = {vocabulary.tokens[i]: i for i in vocabulary.control_ids}
    ends = [vocabulary.eos_token_id, vocabulary.eot_token_id, vocabulary.eom_token_id]
    return SpecialTokens(
        bos_token_id=vocabulary.bos_token_id,
        eos_token_ids=end_token_ids(ends, control),
        pad_token_id=vocabulary.pad_token_id,
        unk_token_id=vocabulary.unk_token_id,
        add_bos=vocabulary.add_bos,
        add_eos=vocabulary.add_eos,
        chat_template=vocabulary.chat_template,
    )


def read_tokenizer_settings(
    folder: Path, backend: tokenizers.Tokenizer, vocabulary: Vocabulary | None = None
) -> SpecialTokens:
    """The settings in `tokenizer_config.json`, `generation_config.json` and `chat_template.jinja`, as far as present.

    Args:
      vocabulary: What a SentencePiece file says itself; used where the folder says nothing.

    Raises:
      TokenizerError: If a file is not JSON, or names a token that the vocabulary lacks.
    """
    config = _read_json(folder / "tokenizer_config.json")
    ids = {name: _special_id(config, name, backend) for name in ("bos", "eos", "pad", "unk")}
    if vocabulary is not None:
        ids = {name: getattr(vocabulary, f"{name}_token_id") if i is None else i for name, i in ids.items()}
    generation = _generation_eos_ids(folder, backend.get_vocab_size(with_added_tokens=True))
    special = {token.content: i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    added = _template_ids(backend)
    return SpecialTokens(
        bos_token_id=ids["bos"] if ids["bos"] is not None else _first(added[0]),
        eos_token_ids=end_token_ids([ids["eos"], *generation], special),
        pad_token_id=ids["pad"],
        unk_token_id=ids["unk"],
        add_bos=bool(config.get("add_bos_token", bool(added[0]))),
        add_eos=bool(config.get("add_eos_token", bool(added[1]))),
        chat_template=_chat_template(folder, config),
    )


def write_tokenizer_folder(tokenizer: FastTokenizer, folder: Path) -> None:
    """Writes the files that transformers and `load_tokenizer` read; each appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.backend.encode_special_tokens = False
    _write_text(folder / "tokenizer.json", tokenizer.backend.to_str(pretty=False))
    specials = tokenizer.specials
    names = {
        "bos_token": specials.bos_token_id,
        "eos_token": specials.eos_token_ids[0] if specials.eos_token_ids else None,
        "pad_token": specials.pad_token_id,
        "unk_token": specials.unk_token_id,
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": specials.add_eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": _NO_LENGTH_LIMIT,
        **{name: tokenizer.token_text(i) for name, i in names.items() if i is not None},
    }
    template = tokenizer.chat_template
    if template is None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    else:
        _write_text(folder / "chat_template.jinja", template)
    _write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path.name} must be JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path.name} must hold a JSON object, got {type(value).__name__}")
    return value


def _special_id(config: dict[str, Any], name: str, backend: tokenizers.Tokenizer) -> int | None:
    """Id of `bos_token` and the like, which is a string or an object with `content`."""
    value = config.get(f"{name}_token")
    text = value.get("content") if isinstance(value, dict) else value
    if text is None:
        return None
    token_id: int | None = backend.token_to_id(str(text))
    if token_id is None:
        raise TokenizerError(f"tokenizer_config.json names the {name}_token {text!r}, which the vocabulary lacks")
    return token_id


def _generation_eos_ids(folder: Path, vocab_size: int) -> list[int]:
    """`eos_token_id` of `generation_config.json`, else of `config.json`: an id or a list."""
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        wrong = [i for i in ids if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < vocab_size]
        if wrong:
            raise TokenizerError(f"{name}: eos_token_id must be token ids below {vocab_size}, got {wrong[0]!r}")
        return ids
    return []


def _template_ids(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer's own post-processor puts before and after a text."""
    plain = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a", add_special_tokens=True).ids
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []


def _first(values: list[int]) -> int | None:
    return values[0] if values else None


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """`chat_template.jinja` wins over the config's entry, which is a string or a list of named templates."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    value = config.get("chat_template")
    if isinstance(value, list):
        value = next((entry.get("template") for entry in value if entry.get("name") == "default"), None)
    if value is not None and not isinstance(value, str):
        raise TokenizerError(f"chat_template must be a string or a list of named templates, got {type(value).__name__}")
    return value
