"""Who may import whom (docs/architecture.md), read from the sources."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "engine": set(),
    "runtime": set(),
    "quantize": {"engine"},
    "export": {"engine", "quantize"},
    "distill": {"engine", "quantize", "runtime"},
}
# Training may look at the runtime only to evaluate exported files.
RUNTIME_USERS_IN_DISTILL = {"evaluate_device.py"}
MODULES_WITHOUT_JAX = [
    "attar.runtime.session",
    "attar.runtime.chat",
    "attar.runtime.bench",
    "attar.runtime.hub",
    "attar.runtime.native",
    "attar.engine.config",
    "attar.engine.tokenizer",
    "attar.engine.chat_template",
    "attar.engine.gguf_reader",
    "attar.cli",
    "attar.cli.chat",
]


def imported_packages(path: Path) -> Iterator[str]:
    """Names of attar's packages that a file imports, at any depth of the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "attar" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_they_may(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        others = set(imported_packages(path)) - {package}
        allowed = set(ALLOWED[package])
        if package == "distill" and path.name not in RUNTIME_USERS_IN_DISTILL:
            allowed.discard("runtime")
        assert others <= allowed, f"{path.relative_to(ROOT)} imports {sorted(others - allowed)}"


def test_runtime_and_light_modules_import_without_jax() -> None:
    code = f"import sys, importlib\nfor m in {MODULES_WITHOUT_JAX!r}: importlib.import_module(m)\n"
    code += "print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_files_stay_readable() -> None:
    """No source file above 500 lines; generated tables apart."""
    files = [p for package in (*ALLOWED, "src/attar/cli") for p in (ROOT / package).rglob("*") if p.is_file()]
    sources = [p for p in files if p.suffix in (".py", ".c", ".h") and p.name != "unicode_tables.h"]
    assert len(sources) > 50
    long = {str(p.relative_to(ROOT)): n for p in sources if (n := len(p.read_text().splitlines())) > 500}
    assert long == {}
