"""Every kind of bad input ends a command with one line that names file, place and remedy, and leaves files whole."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from attar.cli import main
from attar.export.gguf_writer import export_gguf


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    export_gguf(teacher, path, "Q8_0")
    return path


@pytest.fixture
def folder(tmp_path: Path, teacher: Path) -> Path:
    """A copy of the teacher that a test may spoil."""
    copy = tmp_path / "model"
    copy.mkdir()
    for path in teacher.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def refuse(*arguments: object) -> str:
    """Runs a command that must fail with one line and no traceback; returns the line."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.output
    return errors[0]


def spoil_config(**changes: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return spoil


def truncate(name: str, keep: float) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])

    return spoil


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (truncate("model.safetensors", 0.5), ("model.safetensors",)),
        (truncate("model.safetensors", 0.0), ("model.safetensors",)),
        (truncate("config.json", 0.5), ("config.json",)),
        (spoil_config(model_type="mamba"), ("config.json", "model_type", "mamba")),
        (spoil_config(hidden_size=72), ("72",)),
        (spoil_config(num_hidden_layers=5, layer_types=["full_attention"] * 5), ("layers.4",)),
        (spoil_config(attention_bias=True), ("attention_bias",)),
        (spoil_config(mixture_of_experts=8), ("mixture_of_experts",)),
        (drop_tensor, ("model.layers.1.mlp.up_proj.weight",)),
        (truncate("tokenizer.json", 0.5), ("tokenizer.json",)),
    ],
)
def test_spoiled_checkpoints(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], None], names: tuple[str, ...]
) -> None:
    spoil(folder)
    out = tmp_path / "out.gguf"
    line = refuse("export", folder, "--to", "gguf", "--out", out)
    assert all(name in line for name in names), line
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.05, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("command", [("chat", "-p", "x"), ("inspect",), ("bench", "--repeats", 1)])
def test_truncated_gguf(gguf: Path, tmp_path: Path, command: tuple[object, ...], keep: float) -> None:
    data = gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: int(keep * len(data))])
    assert "cut.gguf" in refuse(command[0], path, *command[1:])


@pytest.mark.parametrize("command", [("chat", "-p", "x"), ("inspect",)])
def test_wrong_magic(tmp_path: Path, command: tuple[str, ...]) -> None:
    path = tmp_path / "picture.gguf"
    path.write_bytes(b"\x89PNG" + bytes(100))
    line = refuse(command[0], path, *command[1:])
    assert "picture.gguf" in line
    assert "GGUF" in line


def test_unknown_architecture(gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(gguf.read_bytes().replace(b"gemma3", b"gemmaX"))
    for command in (("chat", path, "-p", "x"), ("inspect", path)):
        assert "gemmaX" in refuse(*command)


@pytest.mark.parametrize("ending", [".onnx", ".tflite"])
def test_damaged_device_files(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"m{ending}"
    path.write_bytes(b"\x1c\x00\x00\x00TFL3" + b"\xff" * 100)
    assert f"m{ending}" in refuse("bench", path)


def distill(teacher: Path, data: Path, out: Path, *more: object) -> list[object]:
    return [
        "distill", "--teacher", teacher, "--student-layers", "0,2", "--data", data, "--out", out,
        "--steps", 2, "--batch-size", 2, "--max-new-tokens", 8, "--prompt-format", "plain", *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "comp\n', "bad.jsonl:2"),
        ('{"prompt": "a", "completion": "b"}\n\n["a"]\n', "bad.jsonl:3"),
        ('{"prompt": "a"}\n', "bad.jsonl:1"),
        ('{"prompt": 7, "completion": "b"}\n', "bad.jsonl:1"),
        ('{"messages": []}\n', "bad.jsonl:1"),
        ('{"question": "a"}\n', "bad.jsonl:1"),
        ('{"question": "a", "answer": "b"}\n{"question": "a", "answer": true}\n', "bad.jsonl:2"),
        ("", "bad.jsonl"),
        ("\n\n", "bad.jsonl"),
        (json.dumps({"prompt": "long " * 200, "completion": "b"}) + "\n", "bad.jsonl:1"),
    ],
)
def test_bad_data(tmp_path: Path, teacher: Path, content: str, place: str) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text(content)
    method = ("--method", "sft") if "7" not in content else ()
    assert place in refuse(*distill(teacher, data, tmp_path / "run", *method))


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        (("--method", "sft", "--lambda", 0.5), "--lambda"),
        (("--method", "sft", "--teacher-temperature", 2.0), "--teacher-temperature"),
        (("--divergence", "reverse_kl", "--beta", 0.3), "--beta"),
        (("--skew", 0.2), "--skew"),
    ],
)
def test_options_that_would_do_nothing(
    tmp_path: Path, teacher: Path, data: Path, options: tuple[object, ...], idle: str
) -> None:
    command = distill(teacher, data, tmp_path / "run", *options)
    result = CliRunner().invoke(main, [str(argument) for argument in command])
    assert result.exit_code == 2
    assert f"{idle} would do nothing" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("package_summaries", "--seed", 3), ("--seed would do nothing", "arithmetic does")),
        (("package_translations", "--sample"), ("--sample would do nothing", "package_summaries does")),
        (("arithmetic", "--max-words", 9), ("--max-words would do nothing", "arithmetic does not read it")),
        (("arithmetic", "--pair", "en-fr"), ("--pair would do nothing", "package_translations does")),
        (("arithmetic", "--min-steps", 5, "--max-steps", 3), ("--min-steps 5 is above --max-steps 3",)),
        (("arithmetic", "--max-steps", 7), ("'--max-steps'", "2<=x<=6")),
        (("package_translations", "--pair", "en-es"), ("en-es", "en-de", "en-fr")),
        (("poems",), ("poems", "arithmetic")),
    ],
)
def test_recipes_and_their_options(tmp_path: Path, arguments: tuple[object, ...], names: tuple[str, ...]) -> None:
    command = ["data", *map(str, arguments), "--out", str(tmp_path / "data")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert all(name in result.stderr for name in names), result.stderr
    assert not (tmp_path / "data").exists()


def test_a_recipe_that_needs_apt_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "needs apt" in refuse("data", "package_translations", "--out", tmp_path / "data")


def test_missing_data(tmp_path: Path, teacher: Path) -> None:
    assert "absent.jsonl" in refuse(*distill(teacher, tmp_path / "absent.jsonl", tmp_path / "run"))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((), ("--data DATA", "--mix DATA WEIGHT")),
        (("--data", "a.jsonl", "--mix", "b.jsonl", 0.5), ("--data DATA", "--mix DATA WEIGHT")),
        (("--mix", "b.jsonl", 0), ("x>0",)),
        (("--data", "a.jsonl", "--documents", "blank-line"), ("--documents would do nothing", "*.txt")),
        (("--data", "a.jsonl", "--pack-tokens", 64), ("--pack-tokens would do nothing", "--pack")),
        (("--data", "a.jsonl", "--pack", "--prompt-buckets", 2), ("--prompt-buckets would do nothing",)),
        (("--data", "a.jsonl", "--pack"), ("samples of the student are not packed", "lambda is 0.5")),
        (("--data", "a.jsonl", "--log", "file"), ("tensorboard", "wandb")),
    ],
)
def test_data_and_its_options(
    tmp_path: Path, teacher: Path, arguments: tuple[object, ...], names: tuple[str, ...]
) -> None:
    options = ["--out", tmp_path / "run", "--teacher", teacher, "--student-layers", "0,2", *arguments]
    result = CliRunner().invoke(main, ["distill", *map(str, options)])
    assert result.exit_code == 2, result.output
    assert all(name in result.stderr for name in names), result.stderr
    assert not (tmp_path / "run").exists()


def test_options_of_text_where_there_is_none(teacher: Path, data: Path) -> None:
    for option in ("--stride", "--max-tokens"):
        result = CliRunner().invoke(main, ["eval", str(teacher), "--data", str(data), option, "4"])
        assert result.exit_code == 2
        assert f"{option} would do nothing" in result.stderr


def test_vocabularies_that_differ(tmp_path: Path, teacher: Path, data: Path, folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    options = ["--teacher", teacher, "--student", folder, "--data", data, "--out", tmp_path / "run"]
    line = refuse("distill", *options, "--steps", 2, "--batch-size", 2, "--prompt-format", "plain")
    assert "vocabulary" in line
    assert str(folder) in line


def test_unwritable_output(tmp_path: Path, teacher: Path, data: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    for command in (
        distill(teacher, data, blocked / "run"),
        ["export", teacher, "--to", "gguf", "--out", blocked / "m.gguf"],
        ["export", teacher, "--to", "onnx", "--out", blocked / "m"],
        ["export", teacher, "--to", "tflite", "--out", blocked / "m.tflite"],
        ["data", "package_summaries", "--sample", "--out", blocked / "data"],
        ["data", "package_translations", "--out", blocked / "data"],
        ["data", "arithmetic", "--out", blocked / "data"],
    ):
        assert "file" in refuse(*command)
    assert blocked.read_text() == "mine"


def test_export_does_not_replace_a_foreign_folder(tmp_path: Path, teacher: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    refuse("export", teacher, "--to", "onnx", "--out", mine)
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_failed_export_keeps_the_earlier_file(tmp_path: Path, gguf: Path, folder: Path) -> None:
    out = tmp_path / "m.gguf"
    out.write_bytes(gguf.read_bytes())
    truncate("model.safetensors", 0.5)(folder)
    refuse("export", folder, "--to", "gguf", "--out", out)
    assert out.read_bytes() == gguf.read_bytes()


def test_prompt_longer_than_the_context(gguf: Path) -> None:
    line = refuse("chat", gguf, "-p", "x" * 100, "--context", 32, "--raw")
    assert "32" in line


@pytest.mark.parametrize("name", ["no-such-model", "no/such", "smollm"])
def test_unknown_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for command in (("chat", name), ("inspect", name), ("export", name, "--to", "gguf")):
        assert name in refuse(*command)


def test_changed_configuration_is_not_resumed(tmp_path: Path, teacher: Path, data: Path) -> None:
    run = tmp_path / "run"
    options = ("--eval-examples", 2, "--method", "sft")
    command = [str(a) for a in distill(teacher, data, run, *options)]
    assert CliRunner().invoke(main, command).exit_code == 0
    weights = (run / "student" / "model.safetensors").read_bytes()
    line = refuse(*distill(teacher, data, run, *options, "--learning-rate", 0.5))
    assert "learning_rate" in line
    assert (run / "student" / "model.safetensors").read_bytes() == weights


def test_interrupted_training_says_so_and_goes_on(tmp_path: Path, teacher: Path, data: Path) -> None:
    options = ("--checkpoint-every", 1, "--method", "sft")
    arguments = [str(a) for a in distill(teacher, data, tmp_path / "run", *options)]
    arguments[arguments.index("--steps") + 1] = "400"
    process = subprocess.Popen([sys.executable, "-m", "attar.cli", *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not list((tmp_path / "run").glob("checkpoints/*")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "interrupted" in stderr
    assert list((tmp_path / "run").glob("checkpoints/*"))
