"""The tokenizer of the C library against the Python one, which is `tokenizers` itself."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from attar.engine.tokenizer import gguf_tokenizer_metadata, load_tokenizer
from attar.runtime.native import NativeTokenizer
from attar.runtime.session import SessionError

if TYPE_CHECKING:
    from tests.unit.conftest import WriteGguf

KINDS = ["gpt-2", "smollm", "llama-bpe", "qwen2", "plain", "prefixed", "by id", "unknown"]
MakeVocabulary = Callable[[str], dict[str, Any]]


@pytest.fixture
def make_vocabulary(byte_level_folders: dict[str, Path], sentencepiece_models: dict[str, Path]) -> MakeVocabulary:
    """Tokenizer metadata of one of KINDS; the last two are Gemma 2's tie order, and no byte pieces."""

    def make(kind: str) -> dict[str, Any]:
        if kind in byte_level_folders:
            return gguf_tokenizer_metadata(byte_level_folders[kind])
        if kind in sentencepiece_models:
            return gguf_tokenizer_metadata(sentencepiece_models[kind])
        metadata = gguf_tokenizer_metadata(sentencepiece_models["plain"])
        if kind == "by id":
            return metadata | {"attar.tokenizer.tie_order": "id"}
        types = [5 if kind == 6 else kind for kind in metadata["tokenizer.ggml.token_type"]]
        tokens = [t.replace("<0x", "[0x") for t in metadata["tokenizer.ggml.tokens"]]
        return metadata | {"tokenizer.ggml.token_type": types, "tokenizer.ggml.tokens": tokens}

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_tokenizers(
    kind: str, make_vocabulary: MakeVocabulary, write_gguf: WriteGguf, varied_texts: list[str]
) -> None:
    path = write_gguf(make_vocabulary(kind))
    python, native = load_tokenizer(path), NativeTokenizer.open(path)
    for text in varied_texts:
        assert native.encode(text) == python.encode(text), text
        assert native.encode(text, parse_special=False) == python.encode(text, parse_special=False), text
    assert native.encode("a b", add_special=True) == python.encode("a b", add_special=True)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_the_same_bytes(kind: str, make_vocabulary: MakeVocabulary, write_gguf: WriteGguf) -> None:
    path = write_gguf(make_vocabulary(kind))
    python, native = load_tokenizer(path), NativeTokenizer.open(path)
    for token in range(python.vocab_size):
        whole, shown = python.token_bytes(token).decode("utf-8", "replace"), python.decode([token])
        assert native.decode([token], skip_special=False) == whole
        # Where texts have a prefix Python takes it off again; a token of the C library does not know where it stands.
        assert native.decode([token]) in ((shown, f" {shown}") if kind == "prefixed" else (shown,))
        assert native.is_end(token) == (token in python.eos_token_ids)


def _random_bytes(draw: random.Random, texts: list[str]) -> bytes:
    """UTF-8 with some bytes replaced, dropped or put in."""
    data = bytearray(draw.choice(texts).encode())
    for _ in range(draw.randrange(1, 8)):
        at = draw.randrange(len(data) + 1)
        data[at : at + draw.randrange(3)] = bytes(draw.choices(range(256), k=draw.randrange(3)))
    return bytes(data)


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "llama-bpe", "qwen2", "plain"])
def test_bytes_that_are_not_utf8_survive(
    kind: str, make_vocabulary: MakeVocabulary, write_gguf: WriteGguf, varied_texts: list[str]
) -> None:
    native = NativeTokenizer.open(write_gguf(make_vocabulary(kind)))
    draw = random.Random(0)
    for _ in range(2000):
        data = _random_bytes(draw, varied_texts)
        ids = native.encode(data, parse_special=False)
        joined = b"".join(map(native.token_bytes, ids))
        assert joined == (data.replace("\u2581".encode(), b" ") if kind == "plain" else data)


@pytest.mark.parametrize("kind", ["llama-bpe", "plain"])
def test_a_bad_byte_does_not_change_what_is_around_it(
    kind: str, make_vocabulary: MakeVocabulary, write_gguf: WriteGguf
) -> None:
    native = NativeTokenizer.open(write_gguf(make_vocabulary(kind)))
    (bad,) = native.encode(b"\xff")
    assert native.encode(b"word\xff") == [*native.encode("word"), bad]


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "llama-bpe", "plain"])
def test_long_texts_without_a_break(kind: str, make_vocabulary: MakeVocabulary, write_gguf: WriteGguf) -> None:
    """A step that is quadratic in the text, or a recursion as deep as the text, would not get through these."""
    native = NativeTokenizer.open(write_gguf(make_vocabulary(kind)))
    for unit in ("a", " ", "ab", "1", "<", "<|im_", "\n ", "'", "=", "é", " \u2581", "\r\n\t"):
        text = unit * (200_000 // len(unit))
        wanted = text.replace("\u2581", " ") if kind == "plain" else text
        counts = Counter(native.encode(text))
        assert sum(n * len(native.token_bytes(token)) for token, n in counts.items()) == len(wanted.encode()), unit


def test_text_between_special_tokens_is_encoded_alone(make_vocabulary: MakeVocabulary, write_gguf: WriteGguf) -> None:
    native = NativeTokenizer.open(write_gguf(make_vocabulary("smollm")))
    turn = native.encode("<|im_start|>user\nhi<|im_end|>\n")
    assert turn == [1, *native.encode("user\nhi"), 2, *native.encode("\n")]
    assert not {1, 2} & set(native.encode("<|im_start|>user\nhi<|im_end|>\n", parse_special=False))


def test_the_longest_special_token_wins(make_vocabulary: MakeVocabulary, write_gguf: WriteGguf) -> None:
    metadata = make_vocabulary("plain")
    native, tokens = NativeTokenizer.open(write_gguf(metadata)), metadata["tokenizer.ggml.tokens"]
    assert native.encode("\n" * 7) == [tokens.index("\n" * 4), tokens.index("\n" * 3)]
    assert native.encode(" " * 11) == [tokens.index(" " * 8), tokens.index(" " * 3)]


def _set(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda metadata: metadata.update({f"tokenizer.ggml.{key}": value})


def _replace(key: str, index: int, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda metadata: metadata[f"tokenizer.ggml.{key}"].__setitem__(index, value)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("smollm", lambda m: m.pop("tokenizer.ggml.model"), "model must be 'gpt2' or 'llama', got ''"),
        ("smollm", _set("model", "bert"), "model must be 'gpt2' or 'llama', got 'bert'"),
        ("smollm", _set("pre", "viking"), "pre must be one of .* got 'viking'"),
        ("smollm", lambda m: m.pop("tokenizer.ggml.tokens"), "tokens must be an array of"),
        ("smollm", _set("tokens", [1, 2, 3]), "tokens must be an array of"),
        ("smollm", _replace("tokens", 7, "a"), "tokens must differ, tokens 7 and"),
        ("smollm", _replace("tokens", 7, "x" * 1025), "token 7 has 1025 bytes, at most 1024"),
        ("smollm", _set("token_type", [1, 1]), "entry per token, got 2 for 901"),
        ("smollm", _replace("token_type", 7, 9), "token_type of token 7 must be 1 to 6, got 9"),
        ("smollm", _replace("merges", 3, "no"), "must join tokens of the vocabulary, got 'no' at index 3"),
        ("smollm", _replace("merges", 3, "zz~ qq~"), "must join tokens of the vocabulary, got 'zz~ qq~' at index 3"),
        ("smollm", lambda m: m.pop("tokenizer.ggml.merges"), "merges must be an array of strings"),
        ("smollm", _set("bos_token_id", 901), "bos_token_id must be a token id below 901, got 901"),
        ("smollm", _set("eot_token_id", "x"), "eot_token_id must be an integer"),
        ("plain", lambda m: m.pop("tokenizer.ggml.scores"), "scores must be an array of 1400 float32"),
        ("plain", _set("scores", [0.5]), "scores must be an array of 1400 float32"),
        ("plain", _replace("scores", 9, float("nan")), "scores of token 9 is not a number"),
        ("plain", _replace("token_type", 1300, 6), "byte token 1300 must be spelled <0x00> to <0xFF>"),
        ("plain", lambda m: m.update({"attar.tokenizer.tie_order": "x"}), "tie_order must be 'length' or 'id'"),
        (
            "unknown",
            lambda m: m.pop("tokenizer.ggml.unknown_token_id"),
            "needs all 256 byte tokens or an unknown_token_id, got 0 byte tokens",
        ),
    ],
)
def test_damaged_vocabularies_are_refused(
    kind: str, change: Callable[[dict[str, Any]], None], message: str, make_vocabulary: MakeVocabulary,
    write_gguf: WriteGguf,
) -> None:  # fmt: skip
    metadata = make_vocabulary(kind)
    change(metadata)
    with pytest.raises(SessionError, match=message):
        NativeTokenizer.open(write_gguf(metadata))
