"""Models small enough to be trained by the dozen on a CPU: a vocabulary of the task's own, a million weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import jax
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from attar.engine.checkpoint import save_model
from attar.engine.config import ModelConfig
from attar.engine.presets import PRESETS
from attar.engine.transformer import init_params

_SPECIAL = ("<pad>", "<s>", "</s>")


@dataclass(frozen=True)
class Shape:
    """A Llama of this width and depth, with heads 32 wide and half as many for keys and values."""

    hidden: int
    layers: int

    def to_config(self, vocab_size: int, context: int) -> ModelConfig:
        """The shape over a vocabulary of `write_tokenizer`; feed-forward layers are 8/3 as wide, in multiples of 32."""
        heads = self.hidden // 32
        return PRESETS["tiny-llama"].replace(
            vocab_size=vocab_size,
            hidden_size=self.hidden,
            intermediate_size=-(-self.hidden * 8 // 3 // 32) * 32,
            num_hidden_layers=self.layers,
            layer_types=("full_attention",) * self.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2 if heads % 2 == 0 else heads,
            head_dim=32,
            query_pre_attn_scalar=32.0,
            max_position_embeddings=context,
            bos_token_id=_SPECIAL.index("<s>"),
            eos_token_ids=(_SPECIAL.index("</s>"),),
            pad_token_id=_SPECIAL.index("<pad>"),
        )


def write_tokenizer(texts: Iterable[str], folder: Path, vocab_size: int) -> None:
    """A byte-level BPE of the texts, digits one by one, in the files of Hugging Face models; kept if it is there."""
    if (folder / "tokenizer_config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_untrained(folder: Path, config: ModelConfig, tokenizer: Path, seed: int) -> None:
    """A model of random weights, kept if it is there."""
    if not (folder / "config.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        save_model(folder, config, init_params(config, jax.random.key(seed)), tokenizer, {"weights": f"seed {seed}"})


def read_rows(path: Path, count: int | None = None) -> Iterator[dict[str, str]]:
    """The first objects of a JSONL; None takes all."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, islice(lines, count))


def write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """A JSONL, whole or not at all; kept if it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        part.replace(path)
