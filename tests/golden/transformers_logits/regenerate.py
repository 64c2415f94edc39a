"""Writes the golden logits of this folder with transformers: `python tests/golden/transformers_logits/regenerate.py`.

Needs the extra `attar[reference]`. The weights are not stored: `formula_weights` makes them, bit for bit the same on
every platform, from integer arithmetic.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent
LENGTH = 30

_SHAPE: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_GEMMA = {**_SHAPE, "sliding_window": 8, "query_pre_attn_scalar": 24}

# Each as transformers names its config class and fields. Caps and windows are small so that they show.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": (
        "Gemma2Config",
        {**_GEMMA, "num_hidden_layers": 4, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            **_GEMMA,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "llama": (
        "LlamaConfig",
        {
            **_SHAPE,
            "num_hidden_layers": 3,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
}


def formula_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """Weights spread evenly over [-0.25, 0.25) for matrices and [0.5, 1.5) for vectors, by a multiplicative hash.

    Args:
      shapes: Hugging Face tensor names and shapes.
    """
    weights = {}
    for name, shape in shapes.items():
        index = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()))
        mixed = index * np.uint64(0x9E3779B97F4A7C15)  # wraps around 2^64
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        unit = (mixed >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
        low, width = (0.5, 1.0) if len(shape) == 1 else (-0.25, 0.5)
        weights[name] = (np.float32(low) + np.float32(width) * unit).reshape(shape)
    return weights


def tokens() -> NDArray[np.int32]:
    """Token ids [1, LENGTH], beginning with BOS."""
    ids = 3 + np.arange(LENGTH, dtype=np.int32) * 37 % 151
    ids[0] = 2
    return ids[None]


def golden(name: str) -> dict[str, Any]:
    """Runs one config in transformers: its config.json, and the logits of every fifth position and token."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    class_name, values = CONFIGS[name]
    config = getattr(transformers, class_name)(**values)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    shapes = {key: tuple(weight.shape) for key, weight in model.named_parameters()}
    with torch.no_grad():
        for key, weight in formula_weights(shapes).items():
            model.get_parameter(key).copy_(torch.from_numpy(weight))
        logits = model(torch.from_numpy(tokens().astype(np.int64))).logits[0, ::5, ::5].numpy()
    described = {key: value for key, value in config.to_dict().items() if key in {*values, "model_type", "layer_types"}}
    return {
        "transformers": transformers.__version__,
        "config": described,
        "logits": [[round(float(x), 6) for x in row] for row in logits],
    }


def main() -> None:
    """Rewrites every file."""
    for name in CONFIGS:
        text = json.dumps(golden(name), indent=1)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
