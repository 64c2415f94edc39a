"""Builds the C tests. The builds are kept in ``build/native-*``, so that later runs compile only what changed."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent
ROOT = SOURCES.parent.parent
SECONDS = 600


def run_checked(command: list[str | Path]) -> str:
    """Runs a command that must succeed, and returns what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def build_native(target: str, sanitizers: str = "") -> Path:
    """Builds a target of this folder's CMakeLists.txt, or skips the test where it cannot be built.

    Args:
        target: CMake target.
        sanitizers: As in ``-fsanitize=``; empty for an optimised build without any.

    Returns:
        The folder that holds the result.
    """
    if shutil.which("cmake") is None or not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("the native tests need cmake and a C compiler")
    folder = ROOT / "build" / f"native-{sanitizers.replace(',', '-') or 'plain'}"
    run_checked(["cmake", "-S", SOURCES, "-B", folder, f"-DATTAR_SANITIZE={sanitizers}"])
    if not re.search(rf"\b{target}\b", run_checked(["cmake", "--build", folder, "--target", "help"])):
        pytest.skip(f"{target} needs an x86-64 machine and the SIMDe headers (Debian: libsimde-dev)")
    run_checked(["cmake", "--build", folder, "--target", target, "--parallel", "2"])
    return folder


@pytest.fixture
def native_build() -> Callable[..., Path]:
    """The function build_native."""
    return build_native


@pytest.fixture
def native_output() -> Callable[..., str]:
    """Builds and runs a test program, given its target and sanitizers, and returns what it prints."""

    def output(target: str, sanitizers: str = "") -> str:
        return run_checked([build_native(target, sanitizers) / target])

    return output
