"""The C decoder against a float64 one, on tiny models of every family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest

from attar.runtime.native import NativeModel, NativeSession
from attar.runtime.session import NativeOptions

if TYPE_CHECKING:
    from tests.unit.runtime.conftest import MakeTiny, TinyModel

FAMILIES = ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"]
# Float weights: rounding of float32 sums, and now and then the neighbouring f16 for a key or value.
FLOAT_TOLERANCE = 1e-3
# Integer weights add the rounding of activations a group of 32, which seven layers amplify: to 16 bits, and to 8.
INTEGER_TOLERANCE = 1e-2
EIGHT_BIT_SHARE = 0.1  # of the logits' standard deviation, root mean square


def prompt(model: TinyModel, length: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, model.config.n_vocab, length).tolist()


def open_session(
    model: TinyModel, *, bits: int | None = None, cache: Literal["f16", "int8"] = "f16", **settings: Any
) -> NativeSession:
    options = NativeOptions(activation_bits=bits, cache_type=cache)
    return NativeSession(NativeModel(model.path), **({"threads": 1} | settings), options=options)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_match_float64(make_tiny: MakeTiny, family: str) -> None:
    model = make_tiny(family)
    tokens = prompt(model, 40)  # 5 windows
    with open_session(model) as session:
        np.testing.assert_allclose(session.score(tokens), model.logits(tokens), rtol=0, atol=FLOAT_TOLERANCE)


@pytest.mark.parametrize("types", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"])
def test_logits_match_float64_on_the_weights_as_stored(make_tiny: MakeTiny, types: str) -> None:
    model = make_tiny("gemma3", types=types)
    tokens = prompt(model, 30)
    with open_session(model, bits=16) as session:
        np.testing.assert_allclose(session.score(tokens), model.logits(tokens), rtol=0, atol=INTEGER_TOLERANCE)


@pytest.mark.parametrize("types", ["Q8_0", "Q4_0", "Q4_1", "Q5_0"])
def test_eight_bit_activations_are_near(make_tiny: MakeTiny, types: str) -> None:
    model = make_tiny("llama", types=types)
    tokens = prompt(model, 30)
    want = model.logits(tokens)
    with open_session(model) as session:
        error = np.sqrt(((session.score(tokens) - want) ** 2).mean())
    assert 0 < error < EIGHT_BIT_SHARE * want.std()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("types", ["Q8_0", "Q4_1"])
def test_one_token_at_a_time_is_the_prompt_at_once(make_tiny: MakeTiny, types: str, bits: int) -> None:
    model = make_tiny("gemma2", types=types)
    tokens = prompt(model, 50)
    with open_session(model, bits=bits) as session:
        whole = session.score(tokens)
        session.rewind(0)
        singly = np.concatenate([session.score([token]) for token in tokens])
    np.testing.assert_allclose(singly, whole, rtol=0, atol=5e-2 if bits == 8 else FLOAT_TOLERANCE)


def test_float_and_integer_weights_mix_within_a_layer(make_tiny: MakeTiny) -> None:
    types = {"attn_k.weight": "Q8_0", "ffn_up.weight": "Q4_0", "ffn_down.weight": "Q8_0", "output.weight": "Q8_0"}
    model = make_tiny("llama", types=types)
    tokens = prompt(model, 20)
    with open_session(model, bits=16) as session:
        np.testing.assert_allclose(session.score(tokens), model.logits(tokens), rtol=0, atol=INTEGER_TOLERANCE)


def test_rows_that_are_no_multiple_of_32_run_with_float_weights(make_tiny: MakeTiny) -> None:
    model = make_tiny("llama", n_embd=36, n_ff=50, n_heads=3, n_kv_heads=3, head_dim=6, n_vocab=41)
    tokens = prompt(model, 20)
    with open_session(model, threads=3) as session:
        np.testing.assert_allclose(session.score(tokens), model.logits(tokens), rtol=0, atol=FLOAT_TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_decoding_matches_the_full_forward_beyond_chunk_and_ring(make_tiny: MakeTiny, family: str) -> None:
    model = make_tiny(family)
    tokens = prompt(model, 300)  # keys of a decoding step fall into chunks of 128; the ring of 8 + 16 wraps 12 times
    with open_session(model, batch_tokens=16) as session:
        got = np.stack([session.decode(token) for token in tokens])
    np.testing.assert_allclose(got, model.logits(tokens), rtol=0, atol=FLOAT_TOLERANCE)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
@pytest.mark.parametrize("batch_tokens", [1, 5, 8, 64])
def test_prompts_in_pieces_match_the_full_forward(make_tiny: MakeTiny, family: str, batch_tokens: int) -> None:
    model = make_tiny(family)
    tokens = prompt(model, 70)
    with open_session(model, batch_tokens=batch_tokens) as session:
        pieces = [session.prefill(tokens[:1]), session.prefill(tokens[1:38]), session.prefill(tokens[38:])]
    want = model.logits(tokens)[[0, 37, 69]]
    np.testing.assert_allclose(np.stack(pieces), want, rtol=0, atol=FLOAT_TOLERANCE)


def test_long_prompt_in_one_batch(make_tiny: MakeTiny) -> None:
    model = make_tiny("gemma2", window=100)
    tokens = prompt(model, 400)
    with open_session(model, batch_tokens=400, threads=2) as session:
        np.testing.assert_allclose(session.score(tokens), model.logits(tokens), rtol=0, atol=FLOAT_TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("types", ["F32", "Q4_0"])
@pytest.mark.parametrize("cache_type", ["f16", "int8"])
def test_results_do_not_depend_on_the_number_of_threads(
    make_tiny: MakeTiny, family: str, types: str, cache_type: Literal["f16", "int8"]
) -> None:
    model = make_tiny(family, types=types)
    tokens = prompt(model, 150)

    def run(threads: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        with open_session(model, threads=threads, batch_tokens=32, cache=cache_type) as session:
            return np.concatenate([session.score(tokens[:140]), *(session.score([t]) for t in tokens[140:])])

    one = run(1)
    for threads in (2, 3, 5):
        np.testing.assert_array_equal(run(threads), one, err_msg=f"{threads} threads")


def test_llama3_frequency_factors_and_linear_scaling(make_tiny: MakeTiny) -> None:
    factors = (1.0, 1.0, 1.0, 2.0, 3.5, 8.0, 8.0, 8.0)
    keys = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    for changes in ({"rope_freqs": factors}, {"rope_scale": 0.25, "keys": keys}):
        model = make_tiny("llama", rope_base=500000.0, **changes)
        tokens = prompt(model, 60)
        with open_session(model) as session:
            np.testing.assert_allclose(session.score(tokens), model.logits(tokens), rtol=0, atol=FLOAT_TOLERANCE)


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_yarn(make_tiny: MakeTiny, factor: float) -> None:
    keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": 256,
    }
    model = make_tiny("qwen3", rope_base=1000.0, yarn=(factor, 256.0), keys=keys)
    tokens = prompt(model, 60)
    assert NativeModel(model.path).info.n_ctx_train == max(512, 256 * factor)
    with open_session(model) as session:
        np.testing.assert_allclose(session.score(tokens), model.logits(tokens), rtol=0, atol=FLOAT_TOLERANCE)


@pytest.mark.parametrize("pattern", [3, [True, False, False, True]])
def test_layer_pattern_as_period_or_flags(make_tiny: MakeTiny, pattern: int | list[bool]) -> None:
    local = (True, True, False, True) if pattern == 3 else (True, False, False, True)
    keys = {"attention.sliding_window_pattern": pattern, "rope.freq_base_swa": 5000.0}
    model = make_tiny("gemma3", n_layers=4, local=local, rope_scale=1.0, rope_local_base=5000.0, keys=keys)
    tokens = prompt(model, 40)
    with open_session(model) as session:
        assert session.model.info.n_local_layers == sum(local)
        np.testing.assert_allclose(session.score(tokens), model.logits(tokens), rtol=0, atol=FLOAT_TOLERANCE)


def test_gemma2_without_caps_stated_has_the_published_ones(make_tiny: MakeTiny) -> None:
    model = make_tiny("gemma2", attention_cap=50.0, final_cap=30.0, keys={})
    uncapped = make_tiny(
        "gemma2", seed=1, attention_cap=0.0, final_cap=0.0,
        keys={"attn_logit_softcapping": 0.0, "final_logit_softcapping": 0.0},
    )  # fmt: skip
    for tiny in (model, uncapped):
        tokens = prompt(tiny, 20)
        with open_session(tiny) as session:
            np.testing.assert_allclose(session.score(tokens), tiny.logits(tokens), rtol=0, atol=FLOAT_TOLERANCE)


@pytest.mark.parametrize(("family", "n_layers"), [("gemma2", 46), ("gemma3", 62)])
def test_27b_depths_scale_queries_by_width_over_heads(make_tiny: MakeTiny, family: str, n_layers: int) -> None:
    # D / N = 16 while H = 8; the reference scales by H, so the factor between them goes into its q norm or q rows.
    local = tuple((i + 1) % (2 if family == "gemma2" else 6) != 0 for i in range(n_layers))
    model = make_tiny(family, n_layers=n_layers, local=local, n_embd=32, n_heads=2, n_kv_heads=1, head_dim=8, n_ff=32)
    for name, weight in model.weights.items():
        if name.endswith("attn_q_norm.weight" if family == "gemma3" else "attn_q.weight"):
            weight *= np.sqrt(8 / 16)
    tokens = prompt(model, 12)
    with open_session(model) as session:
        np.testing.assert_allclose(session.score(tokens), model.logits(tokens), rtol=0, atol=5 * FLOAT_TOLERANCE)
