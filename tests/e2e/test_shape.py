"""A student for a budget: proposed, trained, exported, and as large as was said."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from attar.cli import main
from attar.engine.checkpoint import load_config
from attar.export.gguf_writer import export_gguf


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def propose(teacher: Path, *options: object) -> dict[str, Any]:
    result = invoke("shape", teacher, *options, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def distill(teacher: Path, data: Path, out: Path, *more: object) -> Result:
    return invoke(
        "distill", "--teacher", teacher, "--data", data, "--out", out, "--steps", 1, "--batch-size", 2,
        "--max-new-tokens", 8, "--prompt-format", "plain", "--eval-examples", 2, *more,
    )  # fmt: skip


@pytest.mark.parametrize("scheme", ["Q4_0", "Q8_0"])
def test_the_exported_student_is_as_large_as_proposed(teacher: Path, data: Path, tmp_path: Path, scheme: str) -> None:
    whole = export_gguf(teacher, tmp_path / "teacher.gguf", scheme).size_bytes
    budget = ("--budget", int(0.6 * whole), "--weights", scheme.lower())
    proposals = {p["style"]: p for p in propose(teacher, *budget)["proposals"]}
    result = distill(teacher, data, tmp_path / "run", *budget, "--calibration-examples", 2)
    assert result.exit_code == 0, result.output
    assert "students within the budget" in result.output
    student = tmp_path / "run" / "student"
    shape, target = load_config(student), proposals["balanced"]["target"]
    assert all(getattr(shape, name) == size for name, size in target.items() if size is not None)
    assert shape.num_parameters == proposals["balanced"]["parameters"]
    written = export_gguf(student, tmp_path / "student.gguf", scheme).size_bytes
    assert written <= 0.6 * whole
    assert written == pytest.approx(proposals["balanced"]["file_bytes"], rel=0.02)
    resolved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert resolved["student_prune"] == target


def test_time_is_bytes_over_bandwidth(teacher: Path) -> None:
    """Weights read once, and the cache of three windows of 8 and one full layer of 100 positions."""
    limit = 0.002
    options = ("--ms-per-token", limit, "--device-bandwidth", 50, "--budget-context", 100, "--favour", "deep")
    found = propose(teacher, *options)
    assert found["chosen"] == "deep"
    deep = next(p for p in found["proposals"] if p["style"] == "deep")
    assert deep["binding"] == "time"
    assert deep["cache_bytes"] == 2 * (3 * 8 + 100) * deep["target"]["num_key_value_heads"] * 32 * 2
    assert deep["ms_per_token"] == pytest.approx((deep["weight_bytes"] + deep["cache_bytes"]) / 50e9 * 1e3)
    assert 0.5 * limit < deep["ms_per_token"] <= limit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "1KB"), "no student of this teacher is within the budget; the smallest takes"),
        (("--budget", "1GB"), "the teacher itself is within the budget"),
        (("--budget", "soon"), "'soon' is no size; write 40MB"),
        ((), "give --budget, --ms-per-token or both"),
    ],
)
def test_budgets_that_ask_for_nothing_possible(teacher: Path, options: tuple[object, ...], message: str) -> None:
    result = invoke("shape", teacher, *options)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--student-layers", "0,1", "--favour", "deep"), "--favour would do nothing: it is read beside --budget or"),
        (("--student-layers", "0,1", "--weights", "Q8_0"), "--weights would do nothing"),
        (("--student-layers", "0,1", "--calibration-examples", 3), "--calibration-examples would do nothing"),
        (
            ("--student-layers", "0,1", "--lora-alpha", 3),
            "--lora-alpha would do nothing: it is read beside --lora-rank",
        ),
        (("--budget", "50KB", "--keep-layers", 2), "leave out --keep-*, or the budget"),
        (("--keep-layers", 2, "--student-layers", "0,1"), "exactly one of student, student_layers"),
        (
            ("--student-layers", "0,1", "--lora-rank", 2, "--lora-targets", "lm_head"),
            "lora_targets must name projections",
        ),
    ],
)
def test_options_that_would_do_nothing_or_clash(
    teacher: Path, data: Path, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    result = distill(teacher, data, tmp_path / "run", *options)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


def test_sizes_beyond_the_teacher_are_refused(teacher: Path, data: Path, tmp_path: Path) -> None:
    result = distill(teacher, data, tmp_path / "run", "--keep-hidden", 4096)
    assert result.exit_code == 1
    assert "hidden_size must lie between 1 and the teacher's 64, got 4096" in result.stderr


def test_a_pruned_student_with_an_adapter_trained_for_four_bits(teacher: Path, data: Path, tmp_path: Path) -> None:
    """All of it at once; the adapter merged into the pruned student is the student."""
    options = ("--keep-intermediate", 64, "--keep-kv-heads", 1, "--lora-rank", 2, "--qat", "q4_0")
    result = distill(teacher, data, tmp_path / "run", *options, "--learning-rate", 0.01)
    assert result.exit_code == 0, result.output
    assert "layers 0-3 of 4" in result.stderr
    merged = invoke("merge", tmp_path / "run" / "initial", tmp_path / "run" / "adapter", "--out", tmp_path / "merged")
    assert merged.exit_code == 0, merged.output
    weights = [
        (folder / "model.safetensors").read_bytes() for folder in (tmp_path / "merged", tmp_path / "run/student")
    ]
    assert weights[0] == weights[1]
    resolved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (resolved["qat"], resolved["lora_rank"], resolved["lora_alpha"]) == ("Q4_0", 2, None)
