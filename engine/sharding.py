"""One mesh of devices for training: what lies on which axis, and how arrays come to lie there.

```
data     rows of a batch; weights are copied
fsdp     rows of a batch as well; weights and optimizer state are divided along hidden_size and gathered layer by layer
tensor   heads, feed-forward columns and the vocabulary; every row is worked on by all devices of this axis
```
The mesh in force is JAX's own (`jax.set_mesh`). Without one, nothing here does anything: a program that runs on one
device is the program that runs on many. A weight whose dimension an axis does not divide is copied along that axis
(`copied_weights` names them); norms are copied everywhere.

References:
  Rajbhandari et al., 2020, "ZeRO", arXiv:1910.02054, section 5 (stage 3), for fsdp.
  Shoeybi et al., 2019, "Megatron-LM", arXiv:1909.08053, section 3, for tensor.
  Xu et al., 2021, "GSPMD", arXiv:2105.04663, for programs partitioned from annotations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array
from numpy.typing import NDArray

from attar.engine.config import ModelConfig

AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")

Tree = TypeVar("Tree")


class MeshError(ValueError):
    """A mesh that there are no devices for, or that a model or batch does not fit."""


@dataclass(frozen=True)
class MeshShape:
    """Devices along each axis; each at least 1."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for axis in AXES:
            if getattr(self, axis) < 1:
                raise ValueError(f"mesh axis {axis} must have at least 1 device, got {getattr(self, axis)}")

    @property
    def num_devices(self) -> int:
        """Devices in all."""
        return self.data * self.fsdp * self.tensor

    @property
    def row_shards(self) -> int:
        """Parts that the rows of a batch are divided into."""
        return self.data * self.fsdp

    @classmethod
    def parse(cls, text: str) -> MeshShape:
        """Reads `data=2,fsdp=4,tensor=1`; an axis that is not named has one device.

        Raises:
          ValueError: If an axis is unknown or named twice, or a size is no positive integer.
        """
        sizes: dict[str, int] = {}
        for part in text.split(","):
            axis, _, size = part.strip().partition("=")
            if axis not in AXES or axis in sizes or not size.isdecimal():
                raise ValueError(f"a mesh is spelled like data=2,fsdp=4,tensor=1, got {text!r}")
            sizes[axis] = int(size)
        return cls(**sizes)

    def __str__(self) -> str:
        return ",".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a shape over the given devices, or over all of this run's.

    Raises:
      MeshError: If the number of devices is another.
    """
    available = jax.devices() if devices is None else devices
    if shape.num_devices != len(available):
        raise MeshError(f"mesh {shape} takes {shape.num_devices} devices, there are {len(available)}; change --mesh")
    return jax.make_mesh(
        (shape.data, shape.fsdp, shape.tensor), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=available
    )


@contextmanager
def on_mesh(shape: MeshShape | None) -> Iterator[None]:
    """Puts a mesh over all devices in force; None leaves everything on one device."""
    if shape is None:
        yield
        return
    with jax.set_mesh(make_mesh(shape)):
        yield


def mesh_shape() -> MeshShape:
    """Of the mesh in force, also inside jit; one device where there is none."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape) if _in_force() else {}
    return MeshShape(*(sizes.get(axis, 1) for axis in AXES))


def _in_force() -> bool:
    """Whether a mesh is; inside `over_row_shards` a function sees its own part alone."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and not mesh.manual_axes


# The axes of each matrix [out, in]; one side of every matrix is hidden_size, and that side goes over fsdp.
_MATRICES: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), ("tensor", "fsdp")
    ),
    **dict.fromkeys(("o_proj", "down_proj"), ("fsdp", "tensor")),
}


def _units(config: ModelConfig, name: str) -> int:
    """What the tensor axis must divide in a matrix: heads are not cut."""
    if name in ("q_proj", "o_proj"):
        return config.num_attention_heads
    if name in ("k_proj", "v_proj"):
        return config.num_key_value_heads
    return config.vocab_size if name in ("embed_tokens", "lm_head") else config.intermediate_size


def weight_spec(name: str, ndim: int, config: ModelConfig, shape: MeshShape) -> P:
    """How one weight lies on a mesh, its optimizer moments likewise.

    Args:
      name: Hugging Face name, as in `transformer.Params`.
      ndim: 2, or 3 for the stacked matrices of all layers.
    """
    if name not in _MATRICES or ndim < 2:
        return _spec()
    units = {"fsdp": config.hidden_size, "tensor": _units(config, name)}
    axes = [axis if _divides(shape, axis, units[axis]) else None for axis in _MATRICES[name]]
    return _spec(*(None,) * (ndim - 2), *axes)


def _divides(shape: MeshShape, axis: str, size: int) -> bool:
    devices: int = getattr(shape, axis)
    return devices > 1 and size % devices == 0


def _spec(*axes: str | tuple[str, ...] | None) -> P:
    """In the one spelling that JAX gives to what it computes, so that nothing is compiled twice."""
    end = max((i + 1 for i, axis in enumerate(axes) if axis), default=0)
    return P(*axes[:end])  # type: ignore[no-untyped-call]  # jax leaves it without types


def _lay(leaf: Array, spec: P) -> Array:
    laid: Array = jax.lax.with_sharding_constraint(leaf, spec)  # type: ignore[no-untyped-call]  # likewise
    return laid


def copied_weights(config: ModelConfig, shape: MeshShape) -> list[str]:
    """Matrices that an axis of the mesh does not divide and that are copied along it, as `k_proj over tensor`."""
    names = [name for name in _MATRICES if name != "lm_head" or not config.tie_word_embeddings]
    return [
        f"{name} over {axis}"
        for name in names
        for axis in ("fsdp", "tensor")
        if getattr(shape, axis) > 1 and axis not in weight_spec(name, 2, config, shape)
    ]


def weight_specs(tree: Any, config: ModelConfig, shape: MeshShape) -> Any:
    """PartitionSpec of every leaf of parameters, gradients, an optimizer's state or a TrainState.

    Leaves are told by the last name of their path, so moments lie as their weights; what is no matrix of the model
    (norms, counters) is copied.
    """

    def spec(path: tuple[Any, ...], leaf: Any) -> P:
        name = path[-1].key if path and isinstance(path[-1], jax.tree_util.DictKey) else ""
        return weight_spec(name, len(leaf.shape), config, shape)

    return jax.tree_util.tree_map_with_path(spec, tree)


def weight_shardings(tree: Any, config: ModelConfig) -> Any:
    """Shardings of `weight_specs` on the mesh in force; None where there is none."""
    if not _in_force():
        return None
    mesh = jax.sharding.get_mesh()
    specs = weight_specs(tree, config, mesh_shape())
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=_is_spec)


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, P)


def row_spec(rows: int, shape: MeshShape, axis: int = 0) -> P:
    """Rows (dimension `axis`) over data and fsdp where these divide them, else copied."""
    return _spec(*(None,) * axis, _row_axes(shape)) if rows % shape.row_shards == 0 else _spec()


def _row_axes(shape: MeshShape) -> str | tuple[str, ...] | None:
    axes = tuple(axis for axis in ROW_AXES if getattr(shape, axis) > 1)
    return axes if len(axes) > 1 else next(iter(axes), None)


def constrain_rows(tree: Tree, axis: int = 0) -> Tree:
    """Inside jit: lays the rows (dimension `axis`) of every leaf over data and fsdp; the rest is each device's own.

    It is this that makes XLA gather weights along fsdp, instead of dividing products by hidden_size.
    """
    if not _in_force():
        return tree
    shape = mesh_shape()
    constrained: Tree = jax.tree.map(lambda leaf: _lay(leaf, row_spec(leaf.shape[axis], shape, axis)), tree)
    return constrained


def constrain_weights(tree: Tree, config: ModelConfig) -> Tree:
    """Inside jit: lays weights, gradients or a state as `weight_specs` says."""
    if not _in_force():
        return tree
    specs = weight_specs(tree, config, mesh_shape())
    constrained: Tree = jax.tree.map(_lay, tree, specs)
    return constrained


def gather_weights(tree: Tree, config: ModelConfig) -> Tree:
    """Inside jit: weights whole along fsdp, each device holding its part of the tensor axis alone.

    For what reads them again and again, as decoding does: they are sent once, and not at every token.
    """
    if not _in_force():
        return tree
    specs = weight_specs(tree, config, mesh_shape())
    whole = jax.tree.map(
        lambda spec: _spec(*(axis if axis == "tensor" else None for axis in spec)), specs, is_leaf=_is_spec
    )
    gathered: Tree = jax.tree.map(_lay, tree, whole)
    return gathered


def constrain_cache(tree: Tree, kv_heads: int) -> Tree:
    """Inside jit: keys and values [L, B, K, S, H] with rows over data and fsdp, heads over tensor where it divides."""
    if not _in_force():
        return tree
    shape = mesh_shape()
    heads = "tensor" if _divides(shape, "tensor", kv_heads) else None

    def constrain(leaf: Array) -> Array:
        rows = _row_axes(shape) if leaf.shape[1] % shape.row_shards == 0 else None
        return _lay(leaf, _spec(None, rows, heads))

    constrained: Tree = jax.tree.map(constrain, tree)
    return constrained


def over_row_shards(function: Callable[[Any, Any], tuple[Any, Any]], rows: Any, copied: Any) -> tuple[Any, Any]:
    """Inside jit: runs a function on each device's rows alone, and adds up what they make together at the end.

    XLA's partitioner would add up after every turn of a loop over positions. The tensor axis stays with it.

    Args:
      function: (rows, copied) -> (what is summed over all rows, what has rows itself).
      rows: Arrays [B, ...].
      copied: Arrays that each device needs whole.

    Returns:
      Of all rows: the sums, matrices among them divided along their last dimension over fsdp, and the arrays [B, ...].
    """
    shape = mesh_shape()
    B = jax.tree.leaves(rows)[0].shape[0]
    if shape.row_shards == 1 or B % shape.row_shards:
        return function(rows, copied)

    def scattered(leaf: Any) -> bool:
        return bool(leaf.ndim == 2 and leaf.shape[1] % shape.fsdp == 0)

    def add_up(leaf: Array) -> Array:
        total: Array
        if not scattered(leaf):
            total = jax.lax.psum(leaf, ROW_AXES)  # type: ignore[no-untyped-call]  # jax leaves these without types
        else:
            part = jax.lax.psum_scatter(leaf, "fsdp", scatter_dimension=1, tiled=True)  # type: ignore[no-untyped-call]
            total = jax.lax.psum(part, "data")  # type: ignore[no-untyped-call]
        return total

    def part(rows: Any, copied: Any) -> tuple[Any, Any]:
        summed, kept = function(rows, copied)
        return jax.tree.map(add_up, summed), kept

    summed, kept = jax.eval_shape(function, rows, copied)
    specs = jax.tree.map(lambda leaf: _spec(None, "fsdp") if scattered(leaf) else _spec(), summed)
    lain = _spec(ROW_AXES)
    mapped = jax.shard_map(
        part,
        in_specs=(lain, _spec()),
        out_specs=(specs, jax.tree.map(lambda _: lain, kept)),
        axis_names=frozenset(ROW_AXES),
        check_vma=False,  # gradients are taken inside, of each device's rows
    )
    result: tuple[Any, Any] = mapped(rows, copied)
    return result


def place_rows(tree: Tree) -> Tree:
    """Arrays [B, ...] on the mesh in force; of host arrays each process puts its rows on its devices.

    Every process gives the whole batch, as batches are made from a seed.
    """
    if not _in_force():
        return tree
    mesh, shape = jax.sharding.get_mesh(), mesh_shape()

    def place(leaf: Any) -> Array:
        sharding = NamedSharding(mesh, row_spec(leaf.shape[0], shape))
        if isinstance(leaf, jax.Array):
            moved: Array = jax.device_put(leaf, sharding)
            return moved
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    placed: Tree = jax.tree.map(place, tree)
    return placed


def to_host(array: Array | NDArray[Any]) -> NDArray[Any]:
    """The whole array in every process's memory. All processes of a run must call it together."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        whole = NamedSharding(jax.sharding.get_mesh(), _spec())
        array = jax.jit(lambda leaf: leaf, out_shardings=whole)(array)
    return np.asarray(array)
