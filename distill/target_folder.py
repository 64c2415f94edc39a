"""A teacher's targets on disk: for every completion position of a data set, its likeliest tokens, drawn ones, or what
its whole distribution is made of.

```
targets.json             settings and hashes; "shards" is null until all are there
shard_00000.safetensors  of `shard_examples` examples in the order of the data, the last shard of fewer
    offsets    int64 [E+1]     positions offsets[e] to offsets[e+1] are the completion of the e-th example
    tokens     uint16 or int32 [P, K]
    log_probs  float32 [P, K]  of the likeliest tokens, falling; never renormalised, the rest is the tail's mass
    hidden     float32 [P, D]  in their place, where states are kept
head.safetensors         with states: the teacher's table of logits by its name in the weights
```
Drawn tokens have no `log_probs`: they stand for the distribution with equal weights. `tokens` is uint16 where the
vocabulary allows. `examples_sha256` is over the token ids of all prompts and completions, so that targets are only ever
read beside the tokens that they were made for.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from attar.distill.data import Example
from attar.distill.part_folder import PartError, read_index, write_index, write_part
from attar.distill.records import file_sha256
from attar.distill.stored_targets import DrawnTargets, StoredTargets, TeacherStates, TopTargets
from attar.engine.config import ConfigError, ModelConfig
from attar.engine.transformer import Params, head_table

INDEX = "targets.json"
TargetKind = Literal["top", "drawn", "states"]
_FORMAT = "attar targets 1"
_OPEN_SHARDS = 32
_HEAD = "head.safetensors"
_STORED: dict[TargetKind, type[StoredTargets]] = {"top": TopTargets, "drawn": DrawnTargets, "states": TeacherStates}


@dataclass(frozen=True)
class TargetSettings:
    """What decides the content of a folder of targets.

    Attributes:
      kind: Whether the likeliest tokens are kept, or drawn ones, or hidden states.
      tokens_per_position: K; 0 of hidden states.
      temperature: Divided the teacher's logits.
      seed: Of drawn tokens; None for the likeliest.
      vocab_size: Of the teacher's logits.
      compute_dtype: Of the teacher's products.
      teacher_fingerprint: `models.params_fingerprint`.
      tokenizer_fingerprint: `Tokenizer.fingerprint`.
      examples_sha256: `examples_sha256`.
      num_examples: In the data set.
      shard_examples: In each shard.
    """

    kind: TargetKind
    tokens_per_position: int
    temperature: float
    seed: int | None
    vocab_size: int
    compute_dtype: str
    teacher_fingerprint: str
    tokenizer_fingerprint: str
    examples_sha256: str
    num_examples: int
    shard_examples: int

    @property
    def num_shards(self) -> int:
        return -(-self.num_examples // self.shard_examples)

    def to_json(self) -> dict[str, Any]:
        """As the index of a folder that is being written."""
        return {"format": _FORMAT, **asdict(self), "shards": None}


@dataclass(frozen=True)
class Shard:
    """Targets of some examples in a row, positions after one another.

    Attributes:
      lengths: Positions of each example, [E].
      arrays: [P, ...] by their names in the file, those of the `StoredTargets`.
    """

    lengths: NDArray[np.int64]
    arrays: dict[str, NDArray[Any]]


def examples_sha256(examples: Sequence[Example]) -> str:
    """Hash of the token ids of all prompts and completions in their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(np.array([len(example.prompt), len(example.completion)], "<i8").tobytes())
        digest.update(example.prompt.astype("<i4").tobytes() + example.completion.astype("<i4").tobytes())
    return digest.hexdigest()


def shard_path(folder: Path, index: int) -> Path:
    """The file of a shard."""
    return folder / f"shard_{index:05d}.safetensors"


def write_shard(path: Path, shard: Shard, vocab_size: int) -> None:
    """Writes one shard whole.

    Raises:
      PartError: If it cannot be written.
    """
    small = np.uint16 if vocab_size <= 1 << 16 else np.int32
    arrays: dict[str, NDArray[Any]] = {
        "offsets": np.concatenate([[0], np.cumsum(shard.lengths)]).astype(np.int64),
    }
    for name, array in shard.arrays.items():
        arrays[name] = np.ascontiguousarray(array.astype(small) if name == "tokens" else array)
    write_part(path, lambda partial: save_file(arrays, partial))


def write_head(folder: Path, params: Params, config: ModelConfig) -> None:
    """Writes the table that makes logits of hidden states, unless it is there.

    Raises:
      PartError: If it cannot be written.
    """
    name = "embed_tokens" if config.tie_word_embeddings else "lm_head"
    if not (folder / _HEAD).exists():
        table = np.ascontiguousarray(head_table(params, config))
        write_part(folder / _HEAD, lambda partial: save_file({name: table}, partial))


def finish_index(folder: Path, settings: TargetSettings, told: dict[str, Any]) -> dict[str, Any]:
    """Writes the index of a folder whose shards are all there, and returns it.

    Args:
      told: Further keys that are told to the reader.
    """
    shards = []
    for number in range(settings.num_shards):
        path = shard_path(folder, number)
        with _open(path) as file:
            first = _STORED[settings.kind]._fields[0]
            positions, kept = file.get_slice(first).get_shape()[0], None
            if settings.kind == "top":
                kept = float(np.exp(file.get_tensor("log_probs").astype(np.float64)).sum(axis=1).mean())
        size = path.stat().st_size
        described = {"file": path.name, "positions": positions, "mean_kept_mass": kept, "bytes": size}
        shards.append({**described, "sha256": file_sha256(path)})
    index = {**settings.to_json(), **told, "shards": shards}
    if settings.kind == "states":
        index["head"] = {"file": _HEAD, "bytes": (folder / _HEAD).stat().st_size, "sha256": file_sha256(folder / _HEAD)}
    write_index(folder / INDEX, index)
    return index


class TargetFolder:
    """Reads a finished folder; rows of targets in any order.

    Args:
      folder: As `attar label` writes it.

    Raises:
      PartError: If it is not a folder of targets, is not finished, or a shard is missing or of another size.

    Attributes:
      settings: What the targets are of.
      sha256: Hash of the index, which holds those of the shards.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / INDEX).is_file():
            raise PartError(f"{folder}: holds no {INDEX}; give a folder that `attar label` wrote")
        index = read_index(folder / INDEX)
        if index.get("format") != _FORMAT:
            raise PartError(f"{folder / INDEX}: must have the format {_FORMAT!r}, got {index.get('format')!r}")
        if index.get("shards") is None:
            raise PartError(f"{folder}: is not finished; run the same `attar label` again to finish it")
        parts = (*index["shards"], *([index["head"]] if "head" in index else []))
        for part in parts:
            path = folder / str(part["file"])
            if not path.is_file() or path.stat().st_size != part["bytes"]:
                raise PartError(f"{path}: must have {part['bytes']} bytes; label the data again into another folder")
        self.settings = TargetSettings(**{field.name: index[field.name] for field in fields(TargetSettings)})
        if self.settings.kind not in get_args(TargetKind):
            raise PartError(f"{folder / INDEX}: kind must be one of {', '.join(get_args(TargetKind))}")
        self.sha256 = file_sha256(folder / INDEX)
        self._folder = folder
        self._teacher_config: dict[str, Any] = index.get("teacher_config", {})
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._unchecked = {str(part["file"]): part["sha256"] for part in parts}

    def teacher_head(self) -> tuple[Params, ModelConfig]:
        """The teacher as far as hidden states need it: its table of logits alone, and its shape.

        Raises:
          PartError: If it cannot be read, or has changed.
        """
        path = self._folder / _HEAD
        self._check(path)
        try:
            with _open(path) as file:
                table = {name: jnp.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - a safe_open is no mapping
            return table, ModelConfig.from_hf(self._teacher_config)
        except (SafetensorError, OSError, ConfigError) as error:
            raise PartError(f"{path}: cannot be read: {error}; label the data again into another folder") from None

    def rows(self, members: Sequence[Sequence[int]], num_positions: int) -> StoredTargets:
        """Targets of rows of one or several examples each, one after the other and padded on the right.

        Args:
          members: Of each of B rows, indices into the data set.
          num_positions: N, at least the longest row's completions together.

        Returns:
          int32 and float32 [B, N, ...] in host memory; padding holds zeros.

        Raises:
          PartError: If a shard, which is checked when it is first read, has changed.
        """
        kind = _STORED[self.settings.kind]
        arrays = [self._padded(name, members, num_positions) for name in kind._fields]
        return kind(*arrays)

    def _padded(self, name: str, members: Sequence[Sequence[int]], num_positions: int) -> NDArray[Any]:
        """One array of the rows."""
        width = self._shard(0).file.get_slice(name).get_shape()[1]
        padded = np.zeros((len(members), num_positions, width), np.int32 if name == "tokens" else np.float32)
        for row, examples in enumerate(members):
            at = 0
            for example in examples:
                shard, place = divmod(example, self.settings.shard_examples)
                opened = self._shard(shard)
                begin, end = opened.offsets[place], opened.offsets[place + 1]
                padded[row, at : at + end - begin] = opened.file.get_slice(name)[begin:end]
                at += end - begin
        return padded

    def _shard(self, number: int) -> _OpenShard:
        if number not in self._open:
            path = shard_path(self._folder, number)
            self._check(path)
            file = _open(path)
            self._open[number] = _OpenShard(file, file.get_tensor("offsets").tolist())
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def _check(self, path: Path) -> None:
        """Compares a file with its hash before it is read for the first time."""
        expected = self._unchecked.pop(path.name, None)
        if expected is not None and file_sha256(path) != expected:
            raise PartError(f"{path}: has changed since it was written; label the data again into another folder")


@dataclass(frozen=True)
class _OpenShard:
    file: Any  # a safe_open, which has no type
    offsets: list[int]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise PartError(f"{path}: cannot be read: {error}; remove it and run the same `attar label` again") from None
