"""A byte-level tokenizer, tiny models in folders and a little data, shared by the tests of distill."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from attar.engine.checkpoint import save_model
from attar.engine.config import ModelConfig
from attar.engine.presets import PRESETS
from attar.engine.tokenizer import Tokenizer, load_tokenizer
from attar.engine.transformer import init_params

PAIRS = [("copy abc:", "abc"), ("copy xyz:", "xyz"), ("say hello to me:", "hello"), ("copy q:", "q"), ("ab:", "ba")]
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token if m['role'] == 'assistant' }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="package", autouse=True)
def quick_compilation() -> Iterator[None]:
    """Tiny models run a few steps each: compiling is what costs, so XLA's expensive passes are left out."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three special tokens and the 256 bytes; no chat template."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


@pytest.fixture(scope="session")
def chat_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("chat-tokenizer"), chat_template=TEMPLATE))


@pytest.fixture(scope="session")
def shape() -> ModelConfig:
    """Two layers over the 259 byte tokens."""
    return PRESETS["tiny-llama"].replace(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        layer_types=("full_attention",) * 2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_ids=(2,),
        pad_token_id=0,
    )


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory, shape: ModelConfig, tokenizer_folder: Path) -> Path:
    """A teacher of random weights, large enough for its distributions to be far from uniform."""
    folder = tmp_path_factory.mktemp("models") / "teacher"
    params = jax.tree.map(lambda leaf: leaf * 6.0 if leaf.ndim > 2 else leaf, init_params(shape, jax.random.key(7)))
    params["embed_tokens"] = params["embed_tokens"] * 20.0
    save_model(folder, shape, params, tokenizer_folder, {"made": "for a test"})
    return folder


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(
        tmp_path_factory.mktemp("data") / "train.jsonl", [{"prompt": p, "completion": c} for p, c in PAIRS]
    )


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_tokenizer(folder: Path, **settings: Any) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<pad>": 0, "<bos>": 1, "<eos>": 2, **{symbol: i + 3 for i, symbol in enumerate(alphabet)}}
    model = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    model.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "add_bos_token": True, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder
