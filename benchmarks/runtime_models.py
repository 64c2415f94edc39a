"""The files that the runtime's benchmarks measure, made once and kept in the user's cache.

SmolLM2-135M-Instruct is the one that `attar pull smollm2` brings (Q4_1); its other types are attar's own export of the
same weights. attar reads the K types but has no encoder for them, so Q4_K_M is written by llama.cpp from the weights in
F16. The larger model has the shape of Gemma 2 at about half a billion weights, which are random: speed and memory do
not depend on them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from attar.runtime.hub import HubError, pull, resolve
from benchmarks.peers import LLAMA_CPP, PeerError, benchmark_cache, last_words, llama_driver, peers_python

LLAMA_FTYPE_Q4_K_M = "15"

MODELS = ("smollm2_q4_0", "smollm2_q4_1", "smollm2_q8_0", "smollm2_q4_k_m", "gemma_q4_0")
TITLES = {
    "smollm2_q4_0": "SmolLM2 Q4_0",
    "smollm2_q4_1": "SmolLM2 Q4_1",
    "smollm2_q8_0": "SmolLM2 Q8_0",
    "smollm2_q4_k_m": "SmolLM2 Q4_K_M",
    "gemma_q4_0": "Gemma-2 shape, 0.5 B, Q4_0",
}


def say(text: str) -> None:
    """Progress, beside the results."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def smollm2() -> Path:
    """The Q4_1 file as it was published; pulled if it is not there.

    Raises:
      HubError: If it cannot be fetched.
    """
    try:
        return resolve("smollm2")
    except HubError:
        return pull("smollm2", say)


def model_file(name: str, python: Path | None) -> Path:
    """One of MODELS, made if it is not in the cache.

    Args:
      python: Interpreter of the peers as the user chose it; only Q4_K_M needs one.
    """
    if name == "smollm2_q4_1":
        return smollm2()
    makers: dict[str, Callable[[Path], None]] = {
        "smollm2_q4_0": lambda path: _export(smollm2(), path, "Q4_0"),
        "smollm2_q8_0": lambda path: _export(smollm2(), path, "Q8_0"),
        "smollm2_q4_k_m": lambda path: _write_q4_k_m(path, python),
        "gemma_q4_0": _write_gemma,
    }
    path = benchmark_cache() / f"{name}.gguf"
    if not path.exists():
        say(f"making {path.name}")
        makers[name](path)
    return path


def _export(source: Path, path: Path, scheme: str) -> None:
    from attar.export.gguf_writer import export_gguf  # needs jax, which measuring does not

    export_gguf(source, path, scheme)


def _write_q4_k_m(path: Path, chosen: Path | None) -> None:
    driver = llama_driver(peers_python(chosen, LLAMA_CPP))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        floats, part = Path(folder) / "f16.gguf", Path(folder) / "q4_k_m.gguf"
        _export(smollm2(), floats, "F16")
        command = [str(driver), "quantize", str(floats), str(part), LLAMA_FTYPE_Q4_K_M, "2"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PeerError(f"writing {path.name} by llama.cpp: {last_words(done.stderr)}")
        part.replace(path)


def _write_gemma(path: Path) -> None:
    """535 M weights: 20 layers of 1,280, window 1,024, and SmolLM2's vocabulary of 49,152, which stands in the file."""
    import jax

    from attar.engine.checkpoint import save_model
    from attar.engine.config import alternate_layers
    from attar.engine.presets import PRESETS
    from attar.engine.transformer import init_params

    config = PRESETS["gemma2-2b"].replace(
        vocab_size=49152,
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=20,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=alternate_layers(20, 2),
        sliding_window=1024,
        eos_token_ids=(2,),
        bos_token_id=1,
    )
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        checkpoint = Path(folder) / "model"
        params = init_params(config, jax.random.key(0))
        save_model(checkpoint, config, params, smollm2(), {"weights": "random"})
        del params
        _export(checkpoint, path, "Q4_0")
