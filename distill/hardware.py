"""What accelerators are stated to do, for estimates; each figure can be overridden by a measured one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Hardware:
    """One device.

    Attributes:
      peak_flops: Dense bfloat16 products, operations a second.
      memory_bytes: That a program may use.
      bandwidth_bytes: Of that memory, a second.
      tpu_topologies: Name of the compile-only topology by number of devices; empty where it is no TPU.
    """

    peak_flops: float
    memory_bytes: float
    bandwidth_bytes: float
    tpu_topologies: Mapping[int, str] = field(default_factory=dict)


_V5E = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_V5P = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}

# Data sheets: Google Cloud's "TPU v5e" and "TPU v5p" pages; NVIDIA's H100 SXM and A100 80GB SXM. `cpu` is one core of a
# server with its share of the memory.
HARDWARE: Mapping[str, Hardware] = MappingProxyType(
    {
        "v5e": Hardware(197e12, 16 * 2**30, 819e9, {count: f"v5e:{shape}" for count, shape in _V5E.items()}),
        "v5p": Hardware(459e12, 95 * 2**30, 2765e9, {count: f"v5p:{shape}" for count, shape in _V5P.items()}),
        "h100": Hardware(989e12, 80e9, 3350e9),
        "a100": Hardware(312e12, 80e9, 2039e9),
        "cpu": Hardware(1e11, 4e9, 1e10),
    }
)
