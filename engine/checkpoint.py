"""Models on disk: read Hugging Face folders and GGUF files, write folders that transformers opens unchanged.

```
folder/  config.json  generation_config.json  model.safetensors  tokenizer files  attar.json (provenance)
```
In memory the layers of one weight are stacked; on disk each is a tensor, `model.layers.3.self_attn.q_proj.weight`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array
from numpy.typing import NDArray

from attar.engine import gguf_reader, safetensors_files
from attar.engine.config import ConfigError, ModelConfig
from attar.engine.gguf_names import hf_shapes
from attar.engine.processes import by_first
from attar.engine.safetensors_files import CheckpointError, Shape, TensorSlices, read_json
from attar.engine.sharding import to_host, weight_shardings
from attar.engine.transformer import Params, param_shapes

if TYPE_CHECKING:
    from attar.engine.tokenizer import Tokenizer

__all__ = [
    "CheckpointError",
    "Model",
    "load_config",
    "load_model",
    "load_params",
    "params_from_tensors",
    "read_tensors",
    "save_model",
    "tensors_from_params",
]

PROVENANCE = "attar.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_OWN_FILES = frozenset(
    {"config.json", "generation_config.json", safetensors_files.SINGLE, PROVENANCE, *TOKENIZER_FILES}
)


class Model(NamedTuple):
    """A model ready to run. `params` are as described in `attar.engine.transformer`."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer


def load_model(source: Path, dtype: DTypeLike = jnp.float32) -> Model:
    """Config, weights and tokenizer of a Hugging Face folder or a GGUF file.

    Args:
      dtype: Of the weights in memory, whatever they are on disk.

    Raises:
      CheckpointError: If the folder is not a whole, consistent checkpoint of a known family.
      GgufError: The same for a GGUF file.
      TokenizerError: If the tokenizer is missing or cannot be read.
    """
    from attar.engine.tokenizer import load_tokenizer  # here, as weights alone are often enough

    config, params = load_params(source, dtype)
    return Model(config, params, load_tokenizer(source))


def load_params(source: Path, dtype: DTypeLike = jnp.float32) -> tuple[ModelConfig, Params]:
    """`load_model` without the tokenizer.

    On a mesh (see `sharding`) each process reads from a folder what its devices hold, and no more; a GGUF, whose
    numbers stand in blocks, goes through the memory of each process as a whole.
    """
    config = load_config(source)
    shardings = weight_shardings(param_shapes(config), config)
    if shardings is None or _is_gguf(source):
        params = _fill(config, stream_tensors(source, config), dtype)
        return config, params if shardings is None else jax.device_put(params, shardings)
    return config, _read_parts(TensorSlices(_checked_shards(source, config)), config, dtype, shardings)


def load_config(source: Path) -> ModelConfig:
    """The description of the model in a folder or GGUF file.

    A folder's `generation_config.json` often names more end tokens than its `config.json`; all of them count.

    Raises:
      CheckpointError: If there is no model, or attar does not implement it.
    """
    if _is_gguf(source):
        return gguf_reader.config_from_gguf(gguf_reader.read_gguf(source))
    path = source / "config.json"
    try:
        config = ModelConfig.from_hf(read_json(path))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}; attar cannot run this model") from None
    return config.replace(eos_token_ids=_end_tokens(source, config.eos_token_ids))


def read_tensors(source: Path) -> dict[str, NDArray[np.float32]]:
    """All weights as float32 under Hugging Face names, checked against the config."""
    return dict(stream_tensors(source, load_config(source)))


def stream_tensors(source: Path, config: ModelConfig) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Each weight of a folder or GGUF file in turn, after names and shapes of all have been checked.

    A tied head that is stored as a second copy of the token table is left out.

    Raises:
      CheckpointError: If a file is damaged, or names or shapes do not fit the config.
      GgufError: The same for a GGUF file.
    """
    if _is_gguf(source):
        yield from gguf_reader.iter_tensors(gguf_reader.read_gguf(source), config)
        return
    for shard in _checked_shards(source, config):
        for name, tensor in safetensors_files.iter_tensors(shard):
            if not (config.tie_word_embeddings and name == "lm_head.weight"):
                yield name, tensor


def _checked_shards(source: Path, config: ModelConfig) -> list[Path]:
    """The files of a folder, whose tensors are those of the config."""
    shards = safetensors_files.find_shards(source)
    found: dict[str, Shape] = {}
    for shard in shards:
        found |= safetensors_files.read_shapes(shard)
    check_shapes(str(shards[0] if len(shards) == 1 else source), config, found)
    return shards


def params_from_tensors(
    config: ModelConfig, tensors: Mapping[str, NDArray[Any]], dtype: DTypeLike = jnp.float32
) -> Params:
    """Stacks tensors with Hugging Face names into the parameter pytree.

    Raises:
      CheckpointError: If a tensor is missing, unexpected or of a shape that does not fit the config.
    """
    check_shapes("tensors", config, {name: tensor.shape for name, tensor in tensors.items()})
    kept = (pair for pair in tensors.items() if not (config.tie_word_embeddings and pair[0] == "lm_head.weight"))
    return _fill(config, kept, dtype)


def tensors_from_params(config: ModelConfig, params: Params) -> dict[str, NDArray[Any]]:
    """The parameter pytree as tensors with Hugging Face names, in the dtype they have."""
    tensors = {f"model.{name}.weight": to_host(params[name]) for name in ("embed_tokens", "norm")}
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = to_host(params["lm_head"])
    for name, stacked in params["layers"].items():
        for i, weight in enumerate(to_host(stacked)):
            tensors[layer_tensor(i, name)] = weight
    return tensors


def save_model(
    folder: Path,
    config: ModelConfig,
    params: Params,
    tokenizer_source: Path | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Writes a checkpoint folder, whole or not at all; a folder that attar wrote before is replaced.

    Args:
      tokenizer_source: Folder or GGUF file whose tokenizer the model shares; None writes no tokenizer.
      provenance: Where the weights come from (teacher, data hash, method, seed); goes to `attar.json`.

    Raises:
      CheckpointError: If the folder holds anything that attar did not write, or cannot be written.
    """
    tensors = tensors_from_params(config, params)  # in every process, as each holds a part

    def write() -> None:
        with replaced_folder(folder, _OWN_FILES) as fresh:
            _write_files(fresh, config, tensors, tokenizer_source)
            write_json(fresh / PROVENANCE, dict(provenance or {}))

    by_first(write)


@contextmanager
def replaced_folder(folder: Path, own_files: frozenset[str]) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `folder` when all is written, or leaves it as it was.

    Args:
      own_files: Names that attar writes there, PROVENANCE among them; a folder with others is not replaced.

    Raises:
      CheckpointError: If the folder holds anything that attar did not write, or cannot be written.
    """
    _check_replaceable(folder, own_files)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as staging:
            fresh = Path(staging, "new")
            fresh.mkdir()
            yield fresh
            if folder.exists():
                os.replace(folder, Path(staging, "old"))  # removed with the staging folder
            os.replace(fresh, folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error}; choose another folder or free space") from error


def check_shapes(place: str, config: ModelConfig, found: Mapping[str, Shape]) -> None:
    """Compares tensor names and shapes with those the config asks for.

    A tied head stored as a second copy is allowed, as transformers ignores it.

    Args:
      place: What to name in the error: the file or folder.

    Raises:
      CheckpointError: If a tensor is missing, unexpected or misshapen.
    """
    expected = hf_shapes(config)
    allowed = {**expected, "lm_head.weight": (config.vocab_size, config.hidden_size)}
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - allowed.keys())
    if missing:
        raise CheckpointError(f"{place}: lacks {_count(missing)} that the config asks for; fetch the rest of the model")
    if unknown:
        raise CheckpointError(
            f"{place}: holds {_count(unknown)} that {config.model_type} does not use; attar does not run this variant"
        )
    for name, shape in found.items():
        if shape != allowed[name]:
            raise CheckpointError(
                f"{place}: tensor {name!r} must be {list(allowed[name])} by the config, got {list(shape)}; "
                "config.json and the weights belong to different models"
            )


def _count(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown})"


def _is_gguf(source: Path) -> bool:
    """Whether a source is a GGUF file rather than a folder.

    Raises:
      CheckpointError: If it is neither.
    """
    if source.is_file() and source.suffix == ".gguf":
        return True
    if not source.is_dir():
        state = "is not a .gguf file" if source.exists() else "does not exist"
        raise CheckpointError(f"{source}: {state}; give a Hugging Face model folder or a .gguf file")
    return False


def _end_tokens(folder: Path, from_config: tuple[int, ...]) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    named = read_json(path).get("eos_token_id") if path.is_file() else None
    ids = [] if named is None else named if isinstance(named, list) else [named]
    if not all(isinstance(i, int) for i in ids):
        raise CheckpointError(f"{path}: eos_token_id must be an id or a list of ids, got {named!r}; correct it")
    return tuple(dict.fromkeys((*from_config, *ids)))


def _fill(config: ModelConfig, tensors: Iterable[tuple[str, NDArray[Any]]], dtype: DTypeLike) -> Params:
    """Copies tensors into stacked arrays one at a time, so that a model is held once."""
    shapes = param_shapes(config, dtype)
    arrays: Params = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
    slots = {f"model.{name}.weight": arrays[name] for name in ("embed_tokens", "norm")}
    slots["lm_head.weight"] = arrays["embed_tokens" if config.tie_word_embeddings else "lm_head"]
    for name, stacked in arrays["layers"].items():
        slots |= {layer_tensor(i, name): stacked[i : i + 1].reshape(stacked.shape[1:]) for i in range(len(stacked))}
    for name, tensor in tensors:
        slots[name][...] = tensor
    return jax.tree.map(jnp.asarray, arrays)  # type: ignore[no-any-return]  # a tree of Params' structure


def _read_parts(slices: TensorSlices, config: ModelConfig, dtype: DTypeLike, shardings: Params) -> Params:
    """Arrays on a mesh, of which each part is read once and lies in host memory alone."""

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> Array:
        name: str = path[-1].key

        @cache
        def part(bounds: tuple[tuple[int, int], ...]) -> NDArray[Any]:
            index = tuple(slice(*pair) for pair in bounds)
            if path[0].key != "layers":
                stored = "lm_head.weight" if name == "lm_head" else f"model.{name}.weight"
                return slices.read(stored, index).astype(dtype)
            return np.stack([slices.read(layer_tensor(i, name), index[1:]).astype(dtype) for i in range(*bounds[0])])

        def read(index: tuple[slice, ...] | None) -> NDArray[Any]:
            return part(tuple(i.indices(size)[:2] for i, size in zip(index or (), leaf.shape, strict=True)))

        return jax.make_array_from_callback(leaf.shape, sharding, read)

    placed: Params = jax.tree_util.tree_map_with_path(place, param_shapes(config, dtype), shardings)
    return placed


def layer_tensor(index: int, name: str) -> str:
    """Hugging Face name of one layer's weight: q_proj of layer 3 is `model.layers.3.self_attn.q_proj.weight`."""
    if name in ("gate_proj", "up_proj", "down_proj"):
        return f"model.layers.{index}.mlp.{name}.weight"
    return f"model.layers.{index}.{'' if name.endswith('layernorm') else 'self_attn.'}{name}.weight"


def _check_replaceable(folder: Path, own_files: frozenset[str]) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file; choose another folder for the model")
    entries = {entry.name for entry in folder.iterdir()}
    foreign = sorted(entries - own_files)
    if entries and (foreign or PROVENANCE not in entries):
        what = f"it contains {foreign[0]!r}" if foreign else f"it has no {PROVENANCE}"
        raise CheckpointError(f"{folder}: was not written by attar alone ({what}); choose another folder")


def _write_files(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, NDArray[Any]],
    tokenizer_source: Path | None,
) -> None:
    hf = config.to_hf() | {"torch_dtype": str(tensors["model.embed_tokens.weight"].dtype)}
    tokens = {name: hf[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "config.json", hf)
    write_json(folder / "generation_config.json", {k: v for k, v in tokens.items() if v is not None})
    safetensors_files.write_safetensors(folder / safetensors_files.SINGLE, tensors)
    if tokenizer_source is not None:
        _write_tokenizer(folder, tokenizer_source)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object as indented JSON, its keys in order."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path, source: Path) -> None:
    """Copies a folder's tokenizer files, or writes those of a GGUF's vocabulary."""
    if not source.is_dir():
        from attar.engine.tokenizer import load_tokenizer, save_tokenizer  # here, as a copy needs no tokenizer

        save_tokenizer(load_tokenizer(source), folder)
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
