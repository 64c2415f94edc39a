"""The files that the peers' own converters make of SmolLM2: what their users would run.

onnxruntime-genai's model builder and LiteRT-LM's exporter want torch, and the latter TensorFlow: they live in a second
virtualenv of the user's cache, some gigabytes, made on first use, or in `--converters-python`. The exporter takes
minutes and 4 GB of memory. Both read a Hugging Face folder that attar writes from the published weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

from benchmarks.peers import ONNX_GENAI, PeerError, benchmark_cache, environment_python, last_words
from benchmarks.runtime_models import say, smollm2

CONVERTERS = (
    "torch==2.13.0",
    "transformers==5.24.0",
    "onnx==1.23.2",
    "onnx-ir==1.1.0",
    *ONNX_GENAI,
    "tensorflow==2.21.0",
    "litert-torch==0.10.0",
)
PREFILL_LENGTHS = (128, 512)
# One rule for every operation of its quantiser, which has no name for blocks: weights alone are stored, activations are
# rounded as the model runs.
FOUR_BITS_BY_32 = {
    "regex": ".*",
    "operation": "*",
    "algorithm_key": "min_max_uniform_quantize",
    "op_config": {
        "weight_tensor_config": {"num_bits": 4, "symmetric": True, "granularity": "BLOCKWISE_32", "dtype": "INT"},
        "compute_precision": "INTEGER",
        "explicit_dequantize": False,
        "skip_checks": False,
        "min_weight_elements": 0,
    },
}


def add_option(parser: argparse.ArgumentParser) -> None:
    """The option that every benchmark with the peers' converters takes."""
    parser.add_argument(
        "--converters-python",
        type=Path,
        default=os.environ.get("ATTAR_CONVERTERS_PYTHON"),
        help="interpreter that has the peers' converters (default: $ATTAR_CONVERTERS_PYTHON, else one in the cache)",
    )


def genai_folder(chosen: Path | None, width: int, *, prune_head: bool = False) -> Path:
    """SmolLM2 by onnxruntime-genai's builder: blocks of 32, integer products, symmetric.

    Args:
      chosen: The converters' interpreter as the user gave it.
      width: Bits of a weight, 4 or 8.
      prune_head: Logits for the last position alone.

    Raises:
      PeerError: If the builder fails.
    """
    folder = benchmark_cache() / f"smollm2_genai_int{width}{'_pruned' if prune_head else ''}"
    if not folder.exists():
        say(f"making {folder.name} by onnxruntime-genai's builder")
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            part = Path(work) / "model"
            options = ["block_size=32", "accuracy_level=4", *(["prune_lm_head=true"] if prune_head else [])]
            arguments = ["-i", _source(), "-o", part, "-p", f"int{width}", "-e", "cpu", "-c", Path(work) / "cache"]
            _convert(chosen, ["-m", "onnxruntime_genai.models.builder", *arguments, "--extra_options", *options])
            part.replace(folder)
    return folder


def litert_bundle(chosen: Path | None, width: int, context: int) -> Path:
    """SmolLM2 by litert-torch for LiteRT-LM: int8 a channel, or int4 by blocks of 32.

    Args:
      chosen: The converters' interpreter as the user gave it.
      width: Bits of a weight, 4 or 8.
      context: Tokens of the cache, over all of which it attends.

    Raises:
      PeerError: If the export fails.
    """
    bundle = benchmark_cache() / f"smollm2_litert_int{width}_{context}.litertlm"
    if not bundle.exists():
        say(f"making {bundle.name} by litert-torch, which takes minutes")
        with tempfile.TemporaryDirectory(dir=bundle.parent) as work:
            rule = Path(work) / "four_bits.json"
            rule.write_text(json.dumps([FOUR_BITS_BY_32]))
            recipe = rule if width == 4 else "dynamic_wi8_afp32"
            options = {"model": _source(), "output_dir": work, "quantization_recipe": recipe, "cache_length": context}
            arguments = [f"--{name}={value}" for name, value in options.items()]
            lengths = f"--prefill_lengths={json.dumps(PREFILL_LENGTHS)}"
            _convert(chosen, ["-m", "litert_torch.cli", "export_hf", *arguments, lengths])
            (Path(work) / "model.litertlm").replace(bundle)
    return bundle


def _source() -> Path:
    """SmolLM2 as a Hugging Face folder in float32."""
    folder = benchmark_cache() / "smollm2_floats"
    if not folder.exists():
        from attar.engine.checkpoint import load_params, save_model

        config, params = load_params(smollm2())
        save_model(folder, config, params, smollm2(), {"weights": "smollm2"})
    return folder


def _convert(chosen: Path | None, arguments: list[str | Path]) -> None:
    python = environment_python("converters", chosen, CONVERTERS)
    command = [str(python), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"{' '.join(command[1:4])}: exit status {done.returncode}: {last_words(done.stderr)}")
