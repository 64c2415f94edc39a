"""The decoder against logits that transformers gave for the same weights, without transformers at hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from attar.engine.checkpoint import params_from_tensors
from attar.engine.config import ModelConfig
from attar.engine.gguf_names import hf_shapes
from attar.engine.transformer import forward

FOLDER = Path(__file__).parent
FAMILIES = ("gemma2", "gemma3", "llama")


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """The script that wrote the files: it also makes weights and tokens."""
    spec = importlib.util.spec_from_file_location("transformers_logits_recipe", FOLDER / "regenerate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stored(family: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / f"{family}.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(recipe: ModuleType, family: str) -> None:
    golden = stored(family)
    config = ModelConfig.from_hf(golden["config"])
    params = params_from_tensors(config, recipe.formula_weights(hf_shapes(config)))
    logits = forward(params, config, jnp.asarray(recipe.tokens()))[0, ::5, ::5]
    np.testing.assert_allclose(logits, np.asarray(golden["logits"]), atol=1e-4, rtol=0)


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_what_transformers_gives(recipe: ModuleType, family: str) -> None:
    golden, fresh = stored(family), recipe.golden(family)
    assert fresh["config"] == golden["config"]
    np.testing.assert_allclose(fresh["logits"], golden["logits"], atol=1e-4, rtol=0)
