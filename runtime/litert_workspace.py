"""The caches of a .tflite decoder and the signatures that run on them.

A file may have several families of signatures, each over caches of another size: attention costs what the caches
could hold, so a session begins with small ones and moves on. All families run on the same weights.

    prefill_32       prefill_128       decode       score_64        caches of the whole context
    c320_prefill_32  c320_prefill_128  c320_decode                  caches of 320 positions
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attar.runtime.session import Logits, SessionError

_SIGNATURE = re.compile(r"(?P<family>c\d+_)?(?P<name>decode|(?:prefill|score)_\d+)")


@dataclass(frozen=True)
class Family:
    """Signatures over caches of one size.

    Attributes:
      prefix: What the file writes before the names of these signatures.
      capacity: Positions that each cache holds.
      signatures: Names without the prefix.
      cache_shapes: Shape of each cache by name: k is [1, K, C, H], v is [1, K, H, C].
    """

    prefix: str
    capacity: int
    vocab_size: int
    signatures: frozenset[str]
    cache_shapes: dict[str, tuple[int, ...]]

    def lengths(self, kind: str) -> list[int]:
        """Tokens per call for which there is a signature `kind_T`, ascending."""
        found = (name.partition("_") for name in self.signatures)
        return sorted(int(length) for name, _, length in found if name == kind)


def find_families(path: Path, model: Any) -> list[Family]:
    """The families of a model, smallest caches first; the last is the one without a prefix.

    Raises:
      SessionError: If the model is not a decoder with caches that attar can drive.
    """
    signatures: dict[str, Any] = model.get_signature_list()
    if "decode" not in signatures:
        found = ", ".join(sorted(signatures)) or "none"
        raise SessionError(f"{path}: not a decoder: needs the signature 'decode', got {found}")
    names: dict[str, set[str]] = {}
    for key in signatures:
        match = _SIGNATURE.fullmatch(key)
        if match:
            names.setdefault(match["family"] or "", set()).add(match["name"])
    families = [_describe(path, model, prefix, found) for prefix, found in names.items() if "decode" in found]
    return sorted(families, key=lambda family: family.capacity)


def _describe(path: Path, model: Any, prefix: str, names: set[str]) -> Family:
    key = f"{prefix}decode"
    inputs = {name: tuple(d["shape"]) for name, d in model.get_input_tensor_details(key).items()}
    outputs = model.get_output_tensor_details(key)
    caches = {name: shape for name, shape in inputs.items() if name.startswith("kv_cache_")}
    expected = {*caches, "tokens", "input_pos"}
    if "kv_cache_k_0" not in caches or set(inputs) != expected or set(outputs) != {*caches, "logits"}:
        raise SessionError(
            f"{path}: {key!r} must take tokens, input_pos and kv_cache_*, and return the caches and logits; "
            f"got {', '.join(inputs)} -> {', '.join(outputs)}"
        )
    vocab_size = int(outputs["logits"]["shape"][-1])
    return Family(prefix, caches["kv_cache_k_0"][2], vocab_size, frozenset(names), caches)


class Workspace:
    """The caches of one family, and the buffers of its signatures that have run."""

    def __init__(self, model: Any, family: Family) -> None:
        self.family = family
        self._model = model
        self._runners: dict[str, _Runner] = {}
        self._caches = {name: self._create(name) for name in family.cache_shapes}
        # Rows not written yet are multiplied by 0, which needs them finite.
        for name, shape in family.cache_shapes.items():
            self._caches[name].write(np.zeros(shape, np.float32))

    @property
    def cache_bytes(self) -> int:
        """Bytes of all caches."""
        return sum(4 * math.prod(shape) for shape in self.family.cache_shapes.values())

    def run(self, signature: str, tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> Logits:
        """Runs tokens [1, T] at positions [T]: logits [T, V], or [0, 0] where the signature has none."""
        if signature not in self._runners:
            self._runners[signature] = _Runner(self._model, self.family.prefix + signature, self._caches)
        return self._runners[signature].run(tokens, positions)

    def moved_to(self, family: Family, positions: int) -> Workspace:
        """A workspace over larger caches that hold the same first positions."""
        moved = Workspace(self._model, family)
        for name, shape in family.cache_shapes.items():
            held, larger = self._read(name), np.zeros(shape, np.float32)
            if name.startswith("kv_cache_v"):
                larger[..., :positions] = held[..., :positions]  # [1, K, H, C]
            else:
                larger[:, :, :positions] = held[:, :, :positions]  # [1, K, C, H]
            moved._caches[name].write(larger)
        return moved

    def _create(self, name: str) -> Any:
        return self._model.create_input_buffer_by_name(f"{self.family.prefix}decode", name)

    def _read(self, name: str) -> NDArray[np.float32]:
        shape = self.family.cache_shapes[name]
        held: NDArray[np.float32] = self._caches[name].read(math.prod(shape), np.float32).reshape(shape)
        return held


class _Runner:
    """One signature with its buffers. The caches are everyone's, and are updated in place."""

    def __init__(self, model: Any, key: str, caches: dict[str, Any]) -> None:
        self._model = model
        self._key = key
        self._tokens = model.create_input_buffer_by_name(key, "tokens")
        self._positions = model.create_input_buffer_by_name(key, "input_pos")
        self._inputs = {"tokens": self._tokens, "input_pos": self._positions, **caches}
        self._outputs = dict(caches)
        self._logits_shape: tuple[int, ...] | None = None
        details = model.get_output_tensor_details(key)
        if "logits" in details:
            self._logits_shape = tuple(details["logits"]["shape"])
            self._outputs["logits"] = model.create_output_buffer_by_name(key, "logits")

    def run(self, tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> Logits:
        """Logits [T, V] for tokens [1, T] at positions [T]; [0, 0] where the signature has none."""
        self._tokens.write(tokens)
        self._positions.write(positions)
        self._model.run_by_name(self._key, self._inputs, self._outputs)
        if self._logits_shape is None:
            return np.zeros((0, 0), np.float32)
        _, length, vocab_size = self._logits_shape
        logits: Logits = self._outputs["logits"].read(length * vocab_size, np.float32).reshape(length, vocab_size)
        return logits
