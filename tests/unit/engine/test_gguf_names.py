"""The tensor-name table against the `gguf` package's, and the changes of row order."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from attar.engine.gguf_names import (
    ARCHITECTURES,
    gguf_names,
    hf_names,
    hf_shapes,
    interleave_rope_rows,
    is_norm,
    num_rope_heads,
    split_rope_rows,
)
from attar.engine.presets import PRESETS

_TINY = ["tiny-llama", "tiny-gemma2", "tiny-gemma3"]


@pytest.mark.parametrize("preset", _TINY)
def test_names_are_those_of_the_gguf_package(preset: str) -> None:
    config = PRESETS[preset]
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[config.model_type].upper()]
    table = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for hf_name, gguf_name in gguf_names(config).items():
        assert table.get_name(hf_name, try_suffixes=(".weight",)) == gguf_name


@pytest.mark.parametrize("preset", _TINY)
def test_both_directions_agree_and_count_every_weight(preset: str) -> None:
    config = PRESETS[preset]
    assert {gguf: hf for hf, gguf in gguf_names(config).items()} == hf_names(config)
    assert sum(int(np.prod(shape)) for shape in hf_shapes(config).values()) == config.num_parameters
    assert all(is_norm(name) == (len(shape) == 1) for name, shape in hf_shapes(config).items())


def test_untied_head_has_a_name() -> None:
    config = PRESETS["tiny-llama"].replace(tie_word_embeddings=False)
    assert gguf_names(config)["lm_head.weight"] == "output.weight"


def test_row_order_pairs_neighbours() -> None:
    # Head size 6: Hugging Face rotates (0, 3), (1, 4), (2, 5); GGUF stores each pair side by side.
    rows = np.arange(12)[:, None]
    stored = interleave_rope_rows(rows, num_heads=2)
    np.testing.assert_array_equal(stored[:, 0], [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11])
    np.testing.assert_array_equal(split_rope_rows(stored, num_heads=2), rows)


def test_only_llama_reorders_rows() -> None:
    llama, gemma = PRESETS["tiny-llama"], PRESETS["tiny-gemma3"]
    name = "model.layers.0.self_attn.{}_proj.weight"
    assert num_rope_heads(llama, name.format("q")) == llama.num_attention_heads
    assert num_rope_heads(llama, name.format("k")) == llama.num_key_value_heads
    assert num_rope_heads(llama, name.format("v")) is None
    assert num_rope_heads(gemma, name.format("q")) is None
