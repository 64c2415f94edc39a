"""Quantisation in training: the weights that a file will hold, and that it pays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attar.distill.batches import Batch
from attar.distill.config import TrainConfig
from attar.distill.divergences import forward_kl
from attar.distill.fake_quantized import fake_quantized
from attar.distill.lora import Lora
from attar.distill.methods.gkd import Gkd
from attar.distill.parametrization import Direct, Parametrization
from attar.distill.step import OptimizerConfig, init_state, make_optimizer, make_train_step
from attar.engine.checkpoint import tensors_from_params
from attar.engine.config import ModelConfig
from attar.engine.transformer import Params, forward, init_params
from attar.quantize.blocks import dequantize
from attar.quantize.policy import assign_types, make_scheme
from attar.quantize.ptq import encode_tensor


@pytest.fixture(scope="module")
def blocks_shape(shape: ModelConfig) -> ModelConfig:
    """A shape whose rows are all multiples of 32."""
    return shape.replace(intermediate_size=64)


def random_weights(shape: ModelConfig) -> Params:
    """Weights whose distributions are far from uniform and that four bits hurt."""
    params = init_params(shape, jax.random.key(3))
    grown = jax.tree.map(lambda leaf: leaf * 6.0 if leaf.ndim > 2 else leaf, params)
    return {**grown, "embed_tokens": grown["embed_tokens"] * 10.0}


def quantised(shape: ModelConfig, weights: Params, scheme: str) -> dict[str, Any]:
    """Each tensor as `attar quantize` stores it and a reader decodes it."""
    tensors = tensors_from_params(shape, weights)
    plan = assign_types({name: tensor.shape for name, tensor in tensors.items()}, make_scheme(scheme))
    decoded = {}
    for name, tensor in tensors.items():
        data, report = encode_tensor(plan[name], tensor)
        decoded[name] = dequantize(report.type_name, data, tensor.shape[-1]).reshape(tensor.shape)
    return decoded


@pytest.mark.parametrize("scheme", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("intermediate", [64, 48])
def test_effective_weights_are_those_of_the_quantised_checkpoint(
    shape: ModelConfig, scheme: str, intermediate: int
) -> None:
    """Table and projections by the scheme, norms as they are, and float16 where rows are no multiple of a block."""
    model = shape.replace(intermediate_size=intermediate)
    weights = random_weights(model)
    parametrization = fake_quantized(Direct(), model, make_scheme(scheme))
    trained, frozen = parametrization.split(weights, jax.random.key(0))
    effective = tensors_from_params(model, parametrization.effective(trained, frozen))
    expected = quantised(model, weights, scheme)
    assert effective.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(effective[name], tensor, err_msg=name)
    saved = parametrization.saved(trained, frozen)
    jax.tree.map(np.testing.assert_array_equal, saved, weights)


def test_an_adapter_is_merged_before_it_is_rounded(blocks_shape: ModelConfig) -> None:
    lora = Lora(2, 2.0, ("q_proj",))
    parametrization = fake_quantized(lora, blocks_shape, make_scheme("Q4_0"))
    trained, frozen = parametrization.split(random_weights(blocks_shape), jax.random.key(0))
    trained = jax.tree.map(lambda leaf: leaf + 0.05, trained)
    expected = quantised(blocks_shape, lora.effective(trained, frozen), "Q4_0")
    effective = tensors_from_params(blocks_shape, parametrization.effective(trained, frozen))
    for name, tensor in expected.items():
        np.testing.assert_array_equal(effective[name], tensor, err_msg=name)


def batches(count: int) -> list[Batch]:
    rng = np.random.default_rng(0)
    lengths = np.full(8, 8, np.int32)
    return [
        Batch(rng.integers(3, 259, (8, 8), np.int32), lengths, rng.integers(3, 259, (8, 8), np.int32), lengths)
        for _ in range(count)
    ]


@pytest.mark.parametrize(("lora", "share"), [(None, 0.75), (Lora(8, 16.0), 0.9)])
def test_training_for_four_bits_loses_less_to_them_than_rounding_afterwards(
    blocks_shape: ModelConfig, lora: Lora | None, share: float
) -> None:
    """The student starts as its teacher, so that rounding is all that there is to lose."""
    teacher, optimizer = random_weights(blocks_shape), make_optimizer(OptimizerConfig(1e-4, 120))
    held_out = np.random.default_rng(9).integers(3, 259, (16, 16), np.int32)
    parametrization: Parametrization = fake_quantized(lora or Direct(), blocks_shape, make_scheme("Q4_0"))
    step = make_train_step(
        blocks_shape, blocks_shape, Gkd(divergence="forward_kl"), optimizer, parametrization=parametrization
    )
    trained, frozen = parametrization.split(teacher, jax.random.key(0))
    state = init_state(trained, optimizer)

    @jax.jit
    def divergence(trained: Params) -> jax.Array:
        rounded = parametrization.effective(trained, frozen)
        student, reference = (forward(weights, blocks_shape, jnp.asarray(held_out)) for weights in (rounded, teacher))
        return jnp.mean(forward_kl(student, reference))

    rounded_afterwards = float(divergence(trained))
    for batch in batches(120):
        state, _ = step(state, teacher, batch, frozen)
    assert float(divergence(state.params)) < share * rounded_afterwards


def test_a_scheme_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"qat must be one of F32, .*got 'Q2_K'"):
        TrainConfig(data="d", teacher="t", student_layers=(0,), qat="Q2_K")
