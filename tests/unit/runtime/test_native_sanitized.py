"""Builds the C core with sanitizers and lets it run models and thousands of damaged files."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.unit.runtime.conftest import MakeTiny

ROOT = Path(__file__).parents[3]
needs_compiler = pytest.mark.skipif(
    not (shutil.which("cmake") and (shutil.which("cc") or shutil.which("gcc"))), reason="needs cmake and a C compiler"
)


def build(folder: Path, sanitizers: str) -> Path:
    """Compiles core_test with warnings as errors and the given sanitizers; returns its path.

    Only the scalar kernels: tests/native has the others, and compiling them takes longer than everything here.
    """
    flags = f"-O1 -g -Werror -fsanitize={sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer"
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-DATTAR_BUILD_TESTS=ON", "-DATTAR_SCALAR_ONLY=ON"]
    for command in (
        [*configure, "-DCMAKE_BUILD_TYPE=None", f"-DCMAKE_C_FLAGS={flags}"],
        ["cmake", "--build", str(folder), "--target", "core_test", "--parallel", str(len(os.sched_getaffinity(0)))],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return next(folder.rglob("core_test"))


@needs_compiler
def test_core_under_address_and_undefined_behaviour_sanitizers(
    make_tiny: MakeTiny, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    binary = build(tmp_path_factory.mktemp("build"), "address,undefined")
    small = {"n_layers": 2, "n_embd": 32, "n_ff": 32, "n_heads": 2, "head_dim": 16, "n_vocab": 40}
    models = [
        make_tiny("gemma3", types="Q8_0", local=(True, True), n_kv_heads=1, **small),
        make_tiny("llama", types={"ffn_down.weight": "Q4_0"}, n_kv_heads=2, **small),
    ]
    for model in models:
        command = [str(binary), str(model.path), str(tmp_path / "scratch.gguf")]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "0 failures" in done.stdout
