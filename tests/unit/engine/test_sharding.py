"""Mesh spellings, and which axis each weight lies on; what the devices then compute is in tests/mesh."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from attar.engine.presets import PRESETS
from attar.engine.sharding import MeshError, MeshShape, copied_weights, make_mesh, row_spec, weight_specs
from attar.engine.transformer import param_shapes


@pytest.mark.parametrize(
    ("text", "shape"),
    [("data=2,fsdp=4,tensor=1", MeshShape(2, 4, 1)), ("tensor=8", MeshShape(1, 1, 8)), (" fsdp=3", MeshShape(1, 3, 1))],
)
def test_spellings(text: str, shape: MeshShape) -> None:
    assert MeshShape.parse(text) == shape
    assert MeshShape.parse(str(shape)) == shape
    assert shape.num_devices == shape.data * shape.fsdp * shape.tensor


@pytest.mark.parametrize("text", ["", "data", "data=", "data=2,data=2", "pipeline=2", "data=-1", "data=1.5"])
def test_what_is_no_mesh_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a mesh is spelled like data=2,fsdp=4,tensor=1, got"):
        MeshShape.parse(text)
    with pytest.raises(ValueError, match="axis fsdp must have at least 1 device, got 0"):
        MeshShape.parse("fsdp=0")


def test_a_mesh_takes_all_devices() -> None:
    with pytest.raises(MeshError, match=r"mesh data=1,fsdp=3,tensor=1 takes 3 devices, there are 1"):
        make_mesh(MeshShape(1, 3, 1), jax.devices()[:1])


def test_weights_and_moments_lie_alike() -> None:
    config = PRESETS["gemma2-2b"]
    weights = param_shapes(config)
    specs = weight_specs({"mu": weights, "count": jax.ShapeDtypeStruct((), "int32")}, config, MeshShape(2, 4, 2))
    assert specs["count"] == P()
    assert specs["mu"]["embed_tokens"] == P("tensor", "fsdp")
    assert specs["mu"]["layers"]["q_proj"] == P(None, "tensor", "fsdp")
    assert specs["mu"]["layers"]["down_proj"] == P(None, "fsdp", "tensor")
    assert specs["mu"]["layers"]["input_layernorm"] == P()
    assert specs["mu"] == weight_specs(weights, config, MeshShape(2, 4, 2))


def test_what_an_axis_does_not_divide_is_copied_and_named() -> None:
    config = PRESETS["gemma2-2b"]  # 8 heads on 4 key-value heads, 2304 wide, 9216 within, 256128 tokens
    assert copied_weights(config, MeshShape(1, 256, 1)) == []
    assert copied_weights(config, MeshShape(1, 1, 8)) == ["k_proj over tensor", "v_proj over tensor"]
    assert copied_weights(config, MeshShape(1, 1, 16)) == [f"{name}_proj over tensor" for name in "qkvo"]
    assert len(copied_weights(config, MeshShape(1, 5, 1))) == 8
    specs = weight_specs(param_shapes(config), config, MeshShape(1, 5, 2))
    assert specs["layers"]["q_proj"] == P(None, "tensor")
    assert specs["layers"]["o_proj"] == P(None, None, "tensor")


def test_rows_lie_over_data_and_fsdp_where_these_divide_them() -> None:
    assert row_spec(16, MeshShape(2, 4, 2)) == P(("data", "fsdp"))
    assert row_spec(16, MeshShape(2, 1, 2), axis=1) == P(None, "data")
    assert row_spec(12, MeshShape(2, 4, 2)) == P()
