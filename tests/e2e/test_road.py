"""The whole road through the command line on a tiny model: distil, export, evaluate, chat, measure, look inside."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from attar.cli import main

TARGETS = {
    "Q8_0": ("gguf", "student.gguf"),
    "Q4_0": ("gguf", "student-q4.gguf"),
    "int8": ("onnx", "student-onnx"),
    "fp32": ("tflite", "tflite/student.tflite"),
}


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def run_json(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, teacher: Path, data: Path) -> Path:
    """A run folder with its exports."""
    folder = tmp_path_factory.mktemp("road")
    options = ["--data", data, "--out", folder / "run", "--teacher", teacher, "--student-layers", "0,2", "--steps", 4]
    options += ["--batch-size", 2, "--max-new-tokens", 8, "--eval-every", 4, "--eval-examples", 4]
    result = run("distill", *options, "--prompt-format", "plain")
    assert result.exit_code == 0, result.output
    assert "ROUGE-L" in result.output
    for weights, (target, name) in TARGETS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        result = run("export", folder / "run", "--to", target, "--weights", weights, "--out", folder / name)
        assert result.exit_code == 0, result.output
        assert "verified" in result.output
    return folder


def test_run_folder_is_complete(road: Path) -> None:
    names = {path.name for path in (road / "run").iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "student", "report.html"} <= names
    assert "data:image/png;base64" in (road / "run" / "report.html").read_text()


@pytest.mark.parametrize("name", [name for _, name in TARGETS.values()])
def test_figures_of_verification_stand_beside_the_file(road: Path, name: str) -> None:
    report = json.loads((road / f"{name}.verify.json").read_text())
    assert report["passed"] is True
    assert report["longest_prompt_tokens"] > 8 * 3


@pytest.mark.parametrize("name", ["run", *(name for _, name in TARGETS.values())])
def test_eval_measures_checkpoints_and_files(road: Path, data: Path, teacher: Path, name: str) -> None:
    options = ["--data", data, "--teacher", teacher, "--max-new-tokens", 8, "--prompt-format", "plain"]
    found = run_json("eval", road / name, *options)
    assert found["examples"] == 6
    assert found["perplexity"] > 1
    assert found["scores"]["kl_student_teacher_samples"]["mean"] > 0
    assert 0 <= found["scores"]["rougeL"]["mean"] <= 1


@pytest.mark.parametrize("name", ["run", "student.gguf"])
def test_eval_reads_plain_text(road: Path, tmp_path: Path, name: str) -> None:
    text = "A text of its own. " * 5
    (tmp_path / "d.txt").write_text(text)
    found = run_json("eval", road / name, "--data", tmp_path / "d.txt", "--max-tokens", 32, "--stride", 16)
    scores = found["scores"]
    bits = scores["bits_per_byte"]["mean"]
    assert found["perplexity"] == pytest.approx(2**bits)  # bytes are tokens, the first of which is context alone
    words = len(text.split()) - 1
    assert scores["word_perplexity"]["mean"] == pytest.approx(2 ** (bits * (len(text) - 1) / words), rel=1e-6)
    assert "rougeL" not in scores


def test_exports_of_one_student_score_alike(road: Path, data: Path) -> None:
    options = ["--data", data, "--max-new-tokens", 8, "--prompt-format", "plain"]
    exact = run_json("eval", road / "run", *options)["perplexity"]
    assert run_json("eval", road / "tflite/student.tflite", *options)["perplexity"] == pytest.approx(exact, rel=1e-3)
    assert run_json("eval", road / "student.gguf", *options)["perplexity"] == pytest.approx(exact, rel=0.02)
    assert run_json("eval", road / "student-onnx", *options)["perplexity"] == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("name", ["student.gguf", "student-onnx", "tflite/student.tflite", "run"])
def test_chat_holds_two_turns(road: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path))  # a checkpoint is lowered to a GGUF there
    result = run("chat", road / name, "-n", 4, "--temperature", 0, stdin="hello\nagain\n/reset\nhello\n/quit\n")
    assert result.exit_code == 0, result.output
    assert result.output.count("read ") == 3
    assert "kept in the cache" in result.output
    assert "forgotten" in result.output


def test_backends_say_the_same(road: Path) -> None:
    said = {
        name: run("chat", road / name, "-p", "copy abc", "-n", 12, "--temperature", 0, *exact).stdout
        for name, exact in (("student.gguf", ["--exact"]), ("student-onnx", []), ("tflite/student.tflite", []))
    }
    assert len(set(said.values())) == 1


def test_bench_measures_each_file_in_its_own_process(road: Path, tmp_path: Path) -> None:
    files = [road / "student.gguf", road / "student-onnx", road / "tflite/student.tflite"]
    plot = tmp_path / "bench.png"
    options = ["--prompt", 32, "--depths", "0,64", "-n", 4, "--repeats", 1, "--plot", plot]
    results = run_json("bench", *files, *options)["results"]
    assert [result["backend"] for result in results] == ["native", "onnx", "litert"]
    for result, file in zip(results, files, strict=True):
        assert result["path"] == str(file)
        assert set(result["decode_tokens_per_second"]) == {"0", "64"}
        assert min(result["decode_tokens_per_second"].values()) > 0
        assert result["peak_rss_bytes"] > result["baseline_rss_bytes"] > 0
    assert results[0]["file_bytes"] == (road / "student.gguf").stat().st_size
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["run", "student.gguf", "student-onnx", "tflite/student.tflite"])
def test_inspect_knows_every_format(road: Path, name: str) -> None:
    found = run_json("inspect", road / name)
    assert found["config"]["num_hidden_layers"] == 2
    assert found["config"]["sliding_window"] == 8
    assert sum(found["bytes_by_part"].values()) > 20_000
    assert "local, window 8" in run("inspect", road / name, "--tensors").output


def test_quantize_reports_and_writes(road: Path, tmp_path: Path) -> None:
    found = run_json("quantize", road / "run", "--weights", "Q4_0", "--out", tmp_path / "rounded")
    assert 4.5 < found["bits_per_weight"] < 9
    assert 0.02 < found["relative_error"] < 0.2
    assert run_json("inspect", tmp_path / "rounded")["config"]["num_hidden_layers"] == 2


def test_the_same_distill_command_goes_on(road: Path, teacher: Path, data: Path) -> None:
    before = (road / "run" / "student" / "model.safetensors").read_bytes()
    options = ["--data", data, "--out", road / "run", "--teacher", teacher, "--student-layers", "0,2", "--steps", 4]
    options += ["--batch-size", 2, "--max-new-tokens", 8, "--eval-every", 4, "--eval-examples", 4]
    result = run("distill", *options, "--prompt-format", "plain")
    assert result.exit_code == 0, result.output
    assert (road / "run" / "student" / "model.safetensors").read_bytes() == before
