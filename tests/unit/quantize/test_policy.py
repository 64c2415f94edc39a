"""Which tensor gets which type."""

from __future__ import annotations

import pytest

from attar.engine.gguf_names import hf_shapes
from attar.engine.presets import PRESETS
from attar.quantize.policy import SCHEMES, assign_types, make_scheme


def test_roles() -> None:
    shapes = hf_shapes(PRESETS["tiny-gemma3"].replace(tie_word_embeddings=False))
    plan = assign_types(shapes, make_scheme("Q4_0"))
    assert list(plan) == list(shapes)
    assert plan["model.embed_tokens.weight"].type_name == plan["lm_head.weight"].type_name == "Q8_0"
    assert plan["model.layers.0.mlp.down_proj.weight"].type_name == "Q4_0"
    assert plan["model.layers.0.self_attn.q_norm.weight"].type_name == "F32"
    assert all(assignment.fallback is None for assignment in plan.values())


def test_embedding_type_is_a_choice() -> None:
    plan = assign_types(hf_shapes(PRESETS["tiny-llama"]), make_scheme("Q4_0", embedding="F16"))
    assert plan["model.embed_tokens.weight"].type_name == "F16"
    assert plan["model.layers.0.self_attn.q_proj.weight"].type_name == "Q4_0"


def test_rows_that_blocks_do_not_divide_fall_back_and_say_so() -> None:
    plan = assign_types({"a": (4, 40), "b": (4, 64)}, SCHEMES["Q8_0"])
    assert (plan["a"].type_name, plan["b"].type_name) == ("F16", "Q8_0")
    assert plan["a"].fallback == "rows of 40 are not a multiple of Q8_0's block of 32"
    assert plan["b"].fallback is None
    assert (plan["a"].size_bytes, plan["b"].size_bytes) == (4 * 80, 4 * 68)


def test_refuses_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"scheme must be one of .*, got 'Q3_X'"):
        make_scheme("Q3_X")
    with pytest.raises(ValueError, match=r"embedding type must be one of .*, got 'Q3_X'"):
        make_scheme("Q8_0", "Q3_X")
