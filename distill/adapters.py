"""Adapters on disk, in the layout of Hugging Face's PEFT, so that either side opens the other's.

```
adapter_config.json           rank, alpha, targets
adapter_model.safetensors     base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight [r, in], lora_B [out, r]
attar.json                    provenance
```
Source: peft `tuners/lora/config.py` and `utils/save_and_load.py` (0.17).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from attar.distill.lora import LORA_TARGETS, Lora
from attar.engine.checkpoint import PROVENANCE, CheckpointError, layer_tensor, replaced_folder, write_json
from attar.engine.config import ModelConfig
from attar.engine.safetensors_files import iter_tensors, read_json, write_safetensors
from attar.engine.transformer import Params, layer_shapes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."
_TENSOR = re.compile(
    r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+_proj)\.lora_([AB])(?:\.default)?\.weight"
)
# What changes the mathematics beyond W + scale · B A, with the values under which it does not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None, []),
}


def save_adapter(folder: Path, lora: Lora, trained: Params, base: str, provenance: Mapping[str, Any]) -> None:
    """Writes an adapter, whole or not at all; a folder that attar wrote before is replaced.

    Args:
      trained: As `Lora.split` describes it.
      base: Name or folder of the model that it belongs to.
      provenance: Where it comes from; goes to `attar.json`.

    Raises:
      CheckpointError: If the folder holds anything that attar did not write, or cannot be written.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for name, adapter in trained["layers"].items():
        for part, stacked in adapter.items():
            for index, weight in enumerate(np.asarray(stacked)):
                tensors[_PREFIX + layer_tensor(index, name).replace(".weight", f".{part}.weight")] = weight
    with replaced_folder(folder, frozenset({CONFIG, WEIGHTS, PROVENANCE})) as fresh:
        write_json(fresh / CONFIG, _peft_config(lora, base))
        write_safetensors(fresh / WEIGHTS, tensors)
        write_json(fresh / PROVENANCE, provenance)


def load_adapter(folder: Path, config: ModelConfig) -> tuple[Lora, Params]:
    """Reads an adapter of a model, attar's or PEFT's; layers that it leaves out get zeros.

    Args:
      config: Of the model that it belongs to.

    Raises:
      CheckpointError: If it is not a LoRA adapter in its plain form, is damaged, or belongs to another model.
    """
    raw = read_json(folder / CONFIG)
    _check_plain(folder / CONFIG, raw)
    found = _parse_tensors(folder / WEIGHTS)
    targets = tuple(name for name in LORA_TARGETS if any(key[1] == name for key in found))
    try:
        lora = Lora(int(raw["r"]), float(raw["lora_alpha"]), targets, bool(raw.get("use_rslora", False)))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG}: is no LoRA configuration: {error}; write it again") from None
    return lora, {"layers": {name: _stack(folder / WEIGHTS, config, lora.rank, name, found) for name in targets}}


def _peft_config(lora: Lora, base: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(lora.targets),
        "use_rslora": lora.rank_stabilized,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _check_plain(path: Path, raw: Mapping[str, Any]) -> None:
    if raw.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type must be 'LORA', got {raw.get('peft_type')!r}; attar merges no other")
    for key, plain in _PLAIN.items():
        if key in raw and raw[key] not in plain:
            raise CheckpointError(f"{path}: {key} must be {plain[0]!r}: attar does not implement it, got {raw[key]!r}")


def _parse_tensors(path: Path) -> dict[tuple[int, str, str], NDArray[np.float32]]:
    """Tensors by (layer, projection, "A" or "B")."""
    found = {}
    for name, tensor in iter_tensors(path):
        match = _TENSOR.fullmatch(name)
        if match is None or match[2] not in LORA_TARGETS:
            raise CheckpointError(f"{path}: holds {name!r}, no low-rank part of a projection; merge it in PEFT")
        found[int(match[1]), match[2], match[3]] = tensor
    if not found:
        raise CheckpointError(f"{path}: holds no tensors; write the adapter again")
    return found


def _stack(
    path: Path, config: ModelConfig, rank: int, name: str, found: Mapping[tuple[int, str, str], NDArray[np.float32]]
) -> dict[str, Any]:
    """lora_A [L, r, in] and lora_B [L, out, r] of one projection."""
    L, (out, width) = config.num_hidden_layers, layer_shapes(config)[name]
    shapes = {"A": (rank, width), "B": (out, rank)}
    stacked = {part: np.zeros((L, *shape), np.float32) for part, shape in shapes.items()}
    for (layer, projection, part), tensor in found.items():
        if projection != name:
            continue
        other = "B" if part == "A" else "A"
        if layer >= L or tensor.shape != shapes[part] or (layer, name, other) not in found:
            raise CheckpointError(
                f"{path}: layer {layer} {name} must have lora_A {list(shapes['A'])} and lora_B {list(shapes['B'])} "
                f"among {L} layers, got lora_{part} {list(tensor.shape)}; the adapter belongs to another model"
            )
        stacked[part][layer] = tensor
    return {f"lora_{part}": jnp.asarray(array) for part, array in stacked.items()}
