"""The decoder against transformers, in float32, on random weights and configs that use every feature.

Sequences are three windows long, so that keys fall out of the sliding layers' sight.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from attar.engine.checkpoint import load_config, load_params, save_model
from attar.engine.config import ModelConfig
from attar.engine.kv_cache import init_cache
from attar.engine.transformer import Params, cached_hidden_states, forward, project_logits

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

WINDOW = 8
LENGTH = 3 * WINDOW + 3
TOLERANCE = 1e-4

_SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 2,
    "eos_token_id": [1, 7],
    "pad_token_id": 0,
}
_LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GEMMA = {**_SHAPE, "sliding_window": WINDOW, "query_pre_attn_scalar": 24}
_GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
}

# Caps of 4 and 3 bite on the random weights below, where Gemma's 50 and 30 would hardly show.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": (
        "Gemma2Config",
        {**_GEMMA, "num_hidden_layers": 4, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 3.0},
    ),
    "gemma2-no-caps": (
        "Gemma2Config",
        {**_GEMMA, "num_hidden_layers": 3, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {**_GEMMA, "num_hidden_layers": 7, "rope_parameters": _GEMMA3_ROPE, "final_logit_softcapping": 3.0},
    ),
    "gemma3-one-kv-head": (
        "Gemma3TextConfig",
        {
            **_GEMMA,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    ),
    "llama3": (
        "LlamaConfig",
        {**_SHAPE, "num_hidden_layers": 3, "rope_parameters": _LLAMA3_SCALING, "tie_word_embeddings": False},
    ),
    "llama-linear": (
        "LlamaConfig",
        {
            **_SHAPE,
            "num_hidden_layers": 2,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
            "tie_word_embeddings": True,
        },
    ),
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A transformers model in float32 with random weights, norms included, and the folder it saved itself to."""
    name, values = CONFIGS[request.param]
    config = getattr(transformers, name)(**values)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.ndim == 1 else 0.15) + (weight.ndim == 1))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


def reference_logits(model: Any, tokens: np.ndarray[Any, Any], mask: np.ndarray[Any, Any] | None = None) -> Any:
    """transformers' logits; positions count real tokens, as ours do."""
    extra = {}
    if mask is not None:
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        extra = {"attention_mask": torch.tensor(mask.astype(np.int64)), "position_ids": torch.tensor(positions)}
    with torch.no_grad():
        return model(torch.tensor(tokens.astype(np.int64)), **extra).logits.numpy()


def random_tokens(rows: int = 2) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(3, 96, (rows, LENGTH)).astype(np.int32)


def test_full_forward(checkpoint: tuple[Any, Path]) -> None:
    model, folder = checkpoint
    config, params = load_params(folder)
    tokens = random_tokens()
    ours = forward(params, config, jnp.asarray(tokens))
    expected = reference_logits(model, tokens)
    assert np.ptp(expected) > 1  # the weights make logits that differ
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch(checkpoint: tuple[Any, Path], side: str) -> None:
    model, folder = checkpoint
    config, params = load_params(folder)
    tokens = random_tokens()
    mask = np.ones(tokens.shape, bool)
    mask[1, slice(0, 5) if side == "left" else slice(-5, None)] = False
    ours = forward(params, config, jnp.asarray(tokens), padding_mask=jnp.asarray(mask))
    expected = reference_logits(model, tokens, mask)
    np.testing.assert_allclose(np.asarray(ours)[mask], expected[mask], atol=TOLERANCE, rtol=0)


def cached_logits(config: ModelConfig, params: Params, tokens: np.ndarray[Any, Any], prefill: int) -> Any:
    """Logits of all positions from a prefill of some tokens and one decode step for each of the others."""
    rows, length = tokens.shape
    cache = init_cache(config, rows, length + 2)
    pieces = [(0, prefill), *((i, i + 1) for i in range(prefill, length))]
    logits = []
    for start, end in pieces:
        positions = jnp.broadcast_to(jnp.arange(start, end, dtype=jnp.int32), (rows, end - start))
        hidden, cache = cached_hidden_states(params, config, jnp.asarray(tokens[:, start:end]), positions, cache)
        logits.append(project_logits(params, config, hidden))
    return np.concatenate(logits, axis=1)


def test_prefill_and_cached_decode(checkpoint: tuple[Any, Path]) -> None:
    model, folder = checkpoint
    config, params = load_params(folder)
    tokens = random_tokens()
    ours = cached_logits(config, params, tokens, prefill=WINDOW + 2)
    np.testing.assert_allclose(ours, reference_logits(model, tokens), atol=TOLERANCE, rtol=0)


def test_saved_folder_opens_in_transformers(checkpoint: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = checkpoint
    config, params = load_params(folder)
    save_model(tmp_path / "student", config, params, provenance={"method": "test"})
    opened = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "student", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = random_tokens()
    np.testing.assert_array_equal(reference_logits(opened, tokens), reference_logits(model, tokens))
    assert load_config(tmp_path / "student") == config


def test_config_that_transformers_rewrites_means_the_same(checkpoint: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = checkpoint
    config, params = load_params(folder)
    save_model(tmp_path / "ours", config, params)
    transformers.AutoConfig.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert load_config(tmp_path / "theirs") == config
