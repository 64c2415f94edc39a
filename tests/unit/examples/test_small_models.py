"""Vocabularies and untrained models of the claims."""

from pathlib import Path

import pytest
from examples.small_models import Shape, read_rows, write_rows, write_tokenizer, write_untrained

from attar.engine.checkpoint import load_model


def test_an_untrained_model_can_be_read_back(tmp_path: Path) -> None:
    texts = ["the package holds 12 programs", "the library holds 345 functions"] * 20
    write_tokenizer(texts, tmp_path / "tokenizer", 300)
    write_untrained(tmp_path / "model", Shape(64, 2).to_config(300, 64), tmp_path / "tokenizer", seed=0)
    model = load_model(tmp_path / "model")
    ids = model.tokenizer.encode("the package holds 345")
    assert model.tokenizer.decode(ids) == "the package holds 345"
    assert model.tokenizer.vocab_size <= model.config.vocab_size == 300
    assert len(model.tokenizer.encode("1234567")) == 7
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (2, 1)


@pytest.mark.parametrize("hidden", [32, 64, 96, 192])
def test_shapes_of_any_width_are_models(hidden: int) -> None:
    config = Shape(hidden, 2).to_config(512, 64)
    assert config.num_attention_heads * config.head_dim == hidden
    assert config.num_attention_heads % config.num_key_value_heads == 0


def test_rows_are_kept_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "rows.jsonl"
    write_rows(path, ({"text": str(i)} for i in range(3)))
    write_rows(path, [{"text": "other"}])
    assert list(read_rows(path)) == [{"text": "0"}, {"text": "1"}, {"text": "2"}]
    assert list(read_rows(path, 1)) == [{"text": "0"}]
