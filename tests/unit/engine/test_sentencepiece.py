"""SentencePiece `.model` files: ids against sentencepiece itself, and against a plain statement of the rule."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from attar.engine._vocabulary import TokenType
from attar.engine.tokenizer import TokenizerError, gguf_tokenizer_metadata, load_tokenizer


@pytest.fixture(params=["plain", "prefixed"])
def model(request: pytest.FixtureRequest, sentencepiece_models: dict[str, Path]) -> Path:
    return sentencepiece_models[request.param]


def test_ids_are_sentencepieces_own(model: Path) -> None:
    """On text that no piece overlaps twice: there the two break ties differently, as transformers does."""
    processor, tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(model)), load_tokenizer(model)
    sentences = (
        "They would like these words in one long sentence, and some number: 1234567.",
        "for (int i = 0; i < n; ++i) {  sum += a[i];   }",
        "Über die Straße - こんにちは, 世界! ℵ½ 👍🏽 e\u0301 \x7f",
        "",
        " leading and trailing ",
    )
    for text in sentences:
        assert tokenizer.encode(text) == processor.encode(text), text
        assert tokenizer.decode(processor.encode(text)) == processor.decode(processor.encode(text)), text


class _PlainBpe:
    """The rule in ten lines, for text without special tokens: repeatedly merge the best pair of neighbours."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        tokens = [t.replace(" ", "\u2581") for t in metadata["tokenizer.ggml.tokens"]]
        kinds, scores = metadata["tokenizer.ggml.token_type"], metadata["tokenizer.ggml.scores"]
        self.ids = {t: i for i, t in enumerate(tokens)}
        self.tokens, self.kinds = tokens, kinds
        self.scores = [0.0 if k == TokenType.USER_DEFINED else s for k, s in zip(kinds, scores, strict=True)]

    def _rank(self, parts: list[str], at: int) -> tuple[float, int, int, int, int] | None:
        left, right = parts[at], parts[at + 1]
        made = self.ids.get(left + right)
        if made is None or self.kinds[made] not in (TokenType.NORMAL, TokenType.USER_DEFINED):
            return None
        return (-self.scores[made], -len(left), -len(right), made, at)

    def encode(self, text: str) -> list[int]:
        parts = list(text.replace(" ", "\u2581"))
        while ranks := [rank for at in range(len(parts) - 1) if (rank := self._rank(parts, at)) is not None]:
            at = min(ranks)[-1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [i for part in parts for i in self._ids_of(part)]

    def _ids_of(self, part: str) -> list[int]:
        return [self.ids[part]] if part in self.ids else [self.ids[f"<0x{byte:02X}>"] for byte in part.encode()]


def test_ids_follow_the_stated_rule(sentencepiece_models: dict[str, Path], varied_texts: list[str]) -> None:
    path = sentencepiece_models["plain"]
    tokenizer, plain = load_tokenizer(path), _PlainBpe(gguf_tokenizer_metadata(path))
    special = [t for t, kind in zip(plain.tokens, plain.kinds, strict=True) if kind not in (1, 6) and t != "\n"]
    texts = [text for text in varied_texts if not any(token in text for token in special)]
    assert len(texts) > 500
    for text in texts[:500]:
        assert tokenizer.encode(text) == plain.encode(text), text


def test_text_survives_a_round_trip(sentencepiece_models: dict[str, Path], varied_texts: list[str]) -> None:
    tokenizer = load_tokenizer(sentencepiece_models["plain"])
    for text in varied_texts:
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text.replace("\u2581", " ")


def test_the_prefix_of_a_text_is_taken_off_again(sentencepiece_models: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(sentencepiece_models["prefixed"])
    for text in ("a word", " a word", "", "end.", "Straße 1"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    ids = tokenizer.encode("word")
    assert tokenizer.decode(ids) == "word"
    assert b"".join(map(tokenizer.token_bytes, ids)) == b" word"


def test_settings_come_from_the_file(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids[0], tokenizer.pad_token_id) == (1, 2, 3)
    assert tokenizer.add_bos
    assert tokenizer.encode("a", add_special=True) == [1, *tokenizer.encode("a")]


def _train(**settings: Any) -> bytes:
    out = io.BytesIO()
    defaults = {"model_type": "bpe", "vocab_size": 40, "hard_vocab_limit": False, "minloglevel": 2}
    identity = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "the dog sat on the log"]),
        model_writer=out,
        **{**defaults, **identity, **settings},
    )
    return out.getvalue()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "unigram"}, "type BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalises its text"),
        ({"remove_extra_whitespaces": True}, "removes extra blanks"),
        ({"treat_whitespace_as_suffix": True}, "marks blanks at the end"),
    ],
)
def test_models_of_another_kind_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(_train(**settings))
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(path) in str(caught.value)
    assert "convert it" in str(caught.value)


def test_every_truncation_is_an_error_or_a_smaller_vocabulary(tmp_path: Path) -> None:
    whole, path = _train(), tmp_path / "tokenizer.model"
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(TokenizerError):
            load_tokenizer(path)


def test_random_bytes_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    for start in range(0, 256, 3):
        path.write_bytes(bytes((start + 7 * i) % 256 for i in range(200)))
        with pytest.raises(TokenizerError):
            load_tokenizer(path)
