"""Parts, bytes and cache sizes that `attar inspect` states."""

from pathlib import Path

import pytest

from attar.engine.presets import PRESETS
from attar.export.errors import ExportError
from attar.export.inspection import Inspection, TensorInfo, cache_bytes, inspect_model


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("token_embd.weight", "embedding"),
        ("lm_head.weight", "head"),
        ("output.weight", "head"),
        ("output_norm.weight", "norms"),
        ("blk.3.attn_output.weight", "attention"),
        ("blk.3.attn_q_norm.weight", "norms"),
        ("blk.3.ffn_down.weight", "mlp"),
        ("model.layers.0.self_attn.o_proj.weight", "attention"),
        ("model.layers.0.mlp.up_proj.weight", "mlp"),
        ("model.layers.0.input_layernorm.weight", "norms"),
        ("rope_freqs.weight", "other"),
    ],
)
def test_parts_by_name(name: str, part: str) -> None:
    assert TensorInfo(name, (1,), "F32", 4).part == part


def test_totals_by_part() -> None:
    tensors = (
        TensorInfo("blk.0.ffn_up.weight", (8, 32), "Q8_0", 272),
        TensorInfo("blk.0.ffn_down.weight", (32, 8), "F16", 512),
        TensorInfo("token_embd.weight", (4, 8), "F32", 128),
    )
    found = Inspection(Path("m"), "GGUF", 912, None, tensors)
    assert found.bytes_by_part() == {"embedding": 128, "mlp": 784}
    assert found.types_by_part() == {"mlp": "Q8_0 1, F16 1", "embedding": "F32 1"}


def test_cache_of_gemma2_2b_as_published() -> None:
    """Methods: bf16 at 8,192 tokens, 832 MiB were all layers global, 624 MiB with window 4,096."""
    config = PRESETS["gemma2-2b"]
    everywhere = config.replace(layer_types=("full_attention",) * config.num_hidden_layers)
    assert cache_bytes(everywhere, 8192) == 832 * 2**20
    assert cache_bytes(config, 8192) == 624 * 2**20
    assert cache_bytes(config.replace(sliding_window=1024), 8192) == 468 * 2**20


@pytest.mark.parametrize("name", ["model.bin", "notes.txt", "folder"])
def test_unknown_kinds_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ExportError, match=r"expected a \.gguf"):
        inspect_model(tmp_path / name)


@pytest.mark.parametrize("ending", [".tflite", ".onnx"])
def test_damaged_files_are_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"m{ending}"
    path.write_bytes(b"\x1c\x00\x00\x00TFL3" + b"\xff" * 64)
    with pytest.raises(ExportError, match=f"m{ending}"):
        inspect_model(path)
