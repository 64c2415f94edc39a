"""Tiny checkpoints whose random weights are large enough that every feature of a family moves the logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from attar.engine.checkpoint import params_from_tensors, save_model
from attar.engine.config import ModelConfig, RopeScaling
from attar.engine.gguf_names import hf_shapes
from attar.engine.presets import PRESETS

Tensors = dict[str, NDArray[np.float32]]
MakeCheckpoint = Callable[..., Path]

FAMILIES: dict[str, ModelConfig] = {
    "llama": PRESETS["tiny-llama"].replace(
        num_hidden_layers=2,
        layer_types=("full_attention",) * 2,
        rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 64),
    ),
    "llama-untied": PRESETS["tiny-llama"].replace(
        num_hidden_layers=2,
        layer_types=("full_attention",) * 2,
        tie_word_embeddings=False,
        hidden_size=48,  # no multiple of a block of 32 weights
    ),
    "gemma2": PRESETS["tiny-gemma2"].replace(
        num_hidden_layers=2,
        layer_types=("sliding_attention", "full_attention"),
        attn_logit_softcapping=4.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": PRESETS["tiny-gemma3"].replace(
        num_hidden_layers=2,
        layer_types=("sliding_attention", "full_attention"),
        rope_scaling=RopeScaling("linear", 8.0),
    ),
}


def random_tensors(config: ModelConfig, seed: int = 0) -> Tensors:
    """Weights by Hugging Face names, normal with deviation 0.2."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in hf_shapes(config).items()}


@pytest.fixture(params=FAMILIES)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return FAMILIES[request.param]


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """Writes a checkpoint folder of random weights, or of the tensors given."""

    def make(config: ModelConfig | str, tensors: Tensors | None = None, name: str = "model") -> Path:
        config = FAMILIES[config] if isinstance(config, str) else config
        tensors = tensors or random_tensors(config)
        save_model(tmp_path / name, config, params_from_tensors(config, tensors), provenance={"seed": 0})
        return tmp_path / name

    return make


@pytest.fixture
def tokens() -> list[int]:
    """Three times the window of 8."""
    return [int(i) for i in np.random.default_rng(1).integers(0, 512, 24)]
