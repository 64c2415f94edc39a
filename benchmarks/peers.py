"""The peers' own environment: a virtualenv in the user's cache with pinned versions, and a driver for llama.cpp.

Peers are never imported beside attar: each has its interpreter or program, so that versions do not clash and memory is
counted apart. Another interpreter that has them is taken from `--peers-python` or $ATTAR_PEERS_PYTHON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attar.runtime.hub import cache_folder

LLAMA_CPP = ("llama-cpp-python==0.3.36",)
ONNX_GENAI = ("onnxruntime-genai==0.18.0",)
LITERT_LM = ("litert-lm==0.18.1",)

DRIVER_SOURCE = Path(__file__).with_name("llama_driver.c")


class PeerError(RuntimeError):
    """A peer that cannot be installed, built or run; the message holds its own last words."""


def add_option(parser: argparse.ArgumentParser) -> None:
    """The option that every benchmark against peers takes."""
    parser.add_argument(
        "--peers-python",
        type=Path,
        default=os.environ.get("ATTAR_PEERS_PYTHON"),
        help="interpreter that has the peers installed (default: $ATTAR_PEERS_PYTHON, else a virtualenv in the cache)",
    )


def benchmark_cache() -> Path:
    """Where peers, models and texts of the benchmarks are kept."""
    folder = cache_folder() / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def last_words(text: str, lines: int = 3) -> str:
    """The end of a program's complaints, on one line."""
    return " | ".join(text.strip().splitlines()[-lines:]) or "it said nothing"


def run_json(command: Sequence[str | Path], what: str, stdin: bytes = b"", seconds: float = 1800) -> dict[str, Any]:
    """The JSON object that a program prints as its last line.

    Raises:
      PeerError: If it fails, hangs or prints no JSON; the message begins with `what`.
    """
    try:
        done = subprocess.run([*map(str, command)], input=stdin, capture_output=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise PeerError(f"{what}: no result after {seconds:.0f} s") from None
    out, complaints = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if done.returncode:
        raise PeerError(f"{what}: exit status {done.returncode}: {last_words(complaints)}")
    try:
        result: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise PeerError(f"{what}: expected a line of JSON, got {last_words(out)!r}") from None
    return result


def peers_python(chosen: Path | None, requirements: Sequence[str]) -> Path:
    """An interpreter that has the peers `requirements`: the chosen one, or that of the cache's virtualenv `peers`.

    Raises:
      PeerError: If they cannot be installed.
    """
    return environment_python("peers", chosen, requirements)


def environment_python(name: str, chosen: Path | None, requirements: Sequence[str]) -> Path:
    """The chosen interpreter, or that of a virtualenv in the cache, into which the requirements are installed.

    Raises:
      PeerError: If they cannot be installed.
    """
    if chosen is not None:
        return Path(chosen)
    folder = benchmark_cache() / name
    python = folder / "bin" / "python"
    if not python.exists():
        _call([sys.executable, "-m", "venv", str(folder)], f"making the virtualenv {folder}")
    missing = [requirement for requirement in requirements if not _is_installed(python, requirement)]
    if missing:
        compiled = "; llama.cpp is compiled, which takes minutes" if LLAMA_CPP[0] in missing else ""
        sys.stderr.write(f"installing {', '.join(missing)} into {folder}{compiled}\n")
        # Built for this machine's instructions, as its users are told to; the vision library is not measured.
        environment = os.environ | {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"}
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _call([*command, "--no-binary", "llama-cpp-python", *missing], f"installing {name}", environment)
    return python


def _is_installed(python: Path, requirement: str) -> bool:
    name, version = requirement.split("==")
    found = installed_version(python, name)
    return found is not None and found.partition("+")[0] == version  # "2.13.0+cpu" is a build of 2.13.0


def installed_version(python: Path, name: str) -> str | None:
    """Version of a distribution in another interpreter; None if it is not there."""
    code = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    done = subprocess.run([str(python), "-c", code, name], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def llama_driver(python: Path) -> Path:
    """The compiled driver, linked with the llama.cpp that this interpreter has; built when either changes.

    Raises:
      PeerError: If llama-cpp-python is not there, was installed without its headers, or the compiler fails.
    """
    version = installed_version(python, "llama-cpp-python")
    if version is None:
        raise PeerError(f"{python} has no llama-cpp-python; leave --peers-python out to have it built")
    site = _site_packages(python)
    headers, libraries = site / "include", site / "llama_cpp" / "lib"
    if not (headers / "llama.h").is_file():
        raise PeerError(f"{headers}: no llama.h; build llama-cpp-python from its sdist, wheels leave it out")
    flags = [f"-I{headers}", f"-L{libraries}", f"-Wl,-rpath,{libraries}", f"-Wl,-rpath-link,{libraries}"]
    return build_program(DRIVER_SOURCE, "llama_driver", [*flags, "-lllama", "-lggml", "-lm"], [headers / "llama.h"])


def build_program(source: Path, name: str, flags: Sequence[str], headers: Sequence[Path]) -> Path:
    """A C program of ours in the cache, compiled anew when its source, a header named here, or a flag changes.

    Raises:
      PeerError: If the compiler fails.
    """
    content = b"".join(path.read_bytes() for path in (source, *headers))
    key = hashlib.sha256(" ".join(flags).encode() + content).hexdigest()[:16]
    program = benchmark_cache() / f"{name}-{key}"
    if not program.exists():
        part = program.with_suffix(f".{os.getpid()}")
        command = [os.environ.get("CC", "cc"), "-std=gnu11", "-O2", str(source), *flags, "-o", str(part)]
        _call(command, f"compiling {source.name}")
        part.replace(program)
    return program


def _site_packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('platlib'))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"{python}: {last_words(done.stderr)}")
    return Path(done.stdout.strip())


def _call(command: list[str], what: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise PeerError(f"{what}: {last_words(done.stderr)}")
