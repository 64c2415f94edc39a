"""Builds an ONNX graph whose large weights are streamed into one external data file.

A weight is written the moment it is added and then forgotten, so that exporting holds one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

# A string names a dimension that the caller chooses.
Shape = Sequence[int | str]

MICROSOFT = "com.microsoft"
OPSET = 21
IR_VERSION = 10

# A page, so that a runtime can map each weight in place; smaller tensors stay inside the graph file.
_ALIGNMENT_BYTES = 4096
_INLINE_BYTES = 1024


class GraphBuilder:
    """Collects nodes, inputs and outputs, and appends weights to `data_path`.

    Use as a context manager: it owns the open data file.
    """

    def __init__(self, data_path: Path) -> None:
        self._data_name = data_path.name
        self._data = data_path.open("wb")
        self._nodes: list[Any] = []
        self._initializers: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._counts: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()

    def input(self, name: str, dtype: type[np.generic], shape: Shape) -> str:
        """Declares a graph input; a string in `shape` names a free dimension."""
        self._inputs.append(helper.make_tensor_value_info(name, _element_type(np.dtype(dtype)), shape))
        return name

    def output(self, name: str, dtype: type[np.generic], shape: Shape) -> None:
        """Declares a graph output; some node must already make it."""
        self._outputs.append(helper.make_tensor_value_info(name, _element_type(np.dtype(dtype)), shape))

    def fresh(self, stem: str) -> str:
        """A value name that no other value has."""
        count = self._counts.get(stem, 0)
        self._counts[stem] = count + 1
        return f"{stem}_{count}"

    def node(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str] = (), *, domain: str = "", **attributes: Any
    ) -> str:
        """Appends a node and returns its first output, which is named here if `outputs` is empty."""
        names = list(outputs) or [self.fresh(op)]
        self._nodes.append(
            helper.make_node(op, list(inputs), names, name=self.fresh(f"node_{op}"), domain=domain, **attributes)
        )
        return names[0]

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """A tensor known at export: kept once per name, inside the graph if small and in the data file if not."""
        if name not in self._initializers:
            self._initializers[name] = self._store(name, np.ascontiguousarray(value))
        return name

    def overridable(self, name: str, value: NDArray[Any]) -> str:
        """A graph input that may be left out: it is then `value`."""
        self.input(name, value.dtype.type, value.shape)
        return self.constant(name, value)

    def alias(self, name: str, shape: Sequence[int], of: str) -> str:
        """A second view, with another shape, of the bytes that constant `of` occupies in the data file."""
        source = self._initializers[of]
        tensor = TensorProto()
        tensor.CopyFrom(source)
        tensor.name = name
        del tensor.dims[:]
        tensor.dims.extend(shape)
        self._initializers[name] = tensor
        return name

    def model(self, metadata: Mapping[str, str]) -> Any:
        """The finished ModelProto, without the external data."""
        used = {name for node in self._nodes for name in node.input}
        initializers = [tensor for name, tensor in self._initializers.items() if name in used]
        graph = helper.make_graph(self._nodes, "decoder", self._inputs, self._outputs, initializer=initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="attar")
        helper.set_model_props(model, dict(metadata))
        return model

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Writes the graph beside its data file."""
        self._data.flush()
        onnx.save_model(self.model(metadata), str(path))

    def _store(self, name: str, value: NDArray[Any]) -> Any:
        if value.nbytes < _INLINE_BYTES:
            return helper.make_tensor(name, _element_type(value.dtype), value.shape, value.tobytes(), raw=True)
        offset = -(-self._data.tell() // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self._data.write(b"\0" * (offset - self._data.tell()))
        value.tofile(self._data)
        tensor = TensorProto(
            name=name, data_type=_element_type(value.dtype), dims=value.shape, data_location=TensorProto.EXTERNAL
        )
        for key, entry in (("location", self._data_name), ("offset", str(offset)), ("length", str(value.nbytes))):
            tensor.external_data.add(key=key, value=entry)
        return tensor


def _element_type(dtype: np.dtype[Any]) -> int:
    return int(helper.np_dtype_to_tensor_dtype(dtype))
