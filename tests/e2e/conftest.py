"""A tiny Gemma-3-like teacher in a folder, with data, for the tests that walk the whole road."""

import json
from pathlib import Path

import jax
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from attar.engine.checkpoint import save_model
from attar.engine.config import ModelConfig
from attar.engine.presets import PRESETS
from attar.engine.transformer import init_params

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def tiny_shape() -> ModelConfig:
    """Four layers, three of them local with a window of eight, over 260 byte tokens."""
    return PRESETS["tiny-gemma3"].replace(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        layer_types=("sliding_attention", "sliding_attention", "full_attention", "sliding_attention"),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=48.0,  # not head_dim: a GGUF carries the difference in its weights
        sliding_window=8,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_ids=(2,),
        pad_token_id=0,
    )


def write_tokenizer(folder: Path, alphabet_shift: int = 4) -> Path:
    """Four special tokens and the 256 bytes; another shift is another vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = {c: 4 + (i + alphabet_shift - 4) % 256 for i, c in enumerate(alphabet)}
    vocab = {"<pad>": 0, "<bos>": 1, "</s>": 2, "<s>": 3, **symbols}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<bos>", "</s>", "<s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<bos>", "eos_token": "</s>", "pad_token": "<pad>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_model(folder: Path, alphabet_shift: int = 4) -> Path:
    """Random weights whose distributions are far from uniform."""
    shape = tiny_shape()
    params = jax.tree.map(lambda leaf: leaf * 4.0 if leaf.ndim > 2 else leaf, init_params(shape, jax.random.key(7)))
    tokenizer = write_tokenizer(folder.with_name(folder.name + "-tokenizer"), alphabet_shift)
    save_model(folder, shape, params, tokenizer, {"made": "for a test"})
    return folder


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a recipe writes it."""
    folder = tmp_path_factory.mktemp("data")
    rows = [{"prompt": f"copy {word}:", "completion": f" {word}"} for word in ("abc", "xyz", "hello", "q", "ba", "z")]
    for name in ("train", "validation", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
