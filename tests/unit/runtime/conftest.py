"""Tiny GGUF models with random weights, and what their logits must be by a plain float64 decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TinyConfig:
    """A small decoder of one family; letters in the comments as in `runtime/csrc/forward.h`."""

    architecture: str
    n_layers: int = 3  # L
    n_embd: int = 64  # D
    n_ff: int = 96  # F
    n_heads: int = 4  # N
    n_kv_heads: int = 2  # K
    head_dim: int = 16  # H
    n_vocab: int = 80  # V
    n_ctx_train: int = 512
    rms_eps: float = 1e-6
    rope_base: float = 10000.0
    rope_local_base: float = 10000.0
    rope_scale: float = 1.0  # on global layers
    rope_freqs: tuple[float, ...] | None = None  # [H/2] divisors
    yarn: tuple[float, float] | None = None  # factor, original context length
    window: int = 0
    local: tuple[bool, ...] = ()  # [L]; empty: no local layers
    attention_cap: float = 0.0
    final_cap: float = 0.0
    tied: bool = True
    interleaved_rope: bool = False
    gemma: bool = False  # scaled embeddings and GeGLU
    post_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    vocabulary: bool = False  # tokenizer metadata: pad, eos, bos, unknown, then single characters
    keys: dict[str, Any] = field(default_factory=dict)  # more metadata, without the architecture prefix

    def is_local(self, layer: int) -> bool:
        return bool(self.local) and self.local[layer]


FAMILIES = {
    "llama": TinyConfig("llama", interleaved_rope=True, tied=False),
    "qwen2": TinyConfig("qwen2", qkv_bias=True, rope_base=1e6),
    "qwen3": TinyConfig("qwen3", qk_norm=True, head_dim=32),
    "gemma": TinyConfig("gemma", gemma=True, n_kv_heads=1, head_dim=32),
    "gemma2": TinyConfig(
        "gemma2", n_layers=4, gemma=True, post_norms=True, window=8, local=(True, False, True, False),
        attention_cap=5.0, final_cap=3.0,
        keys={"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": TinyConfig(
        "gemma3", n_layers=7, gemma=True, post_norms=True, qk_norm=True, n_kv_heads=1, window=8,
        local=(True, True, True, True, True, False, True), rope_base=1e6, rope_scale=0.5,
        keys={"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class TinyModel:
    """A written file, and its weights as they read back from it."""

    path: Path
    config: TinyConfig
    weights: dict[str, Floats]  # GGUF names, [rows, cols]

    @property
    def texts(self) -> list[str]:
        """What each token adds to a text; nothing for the control tokens 0 to 3."""
        return ["", "", "", "", *(chr(ord("!") + i) for i in range(self.config.n_vocab - 5)), " "]

    def logits(self, tokens: list[int]) -> Floats:
        """What the model must answer: float64 [T, V]."""
        return _Reference(self).logits(tokens)


class _Reference:
    """The decoder in float64, layer by layer, without a cache; K and V are rounded to f16 as the cache rounds them."""

    def __init__(self, model: TinyModel) -> None:
        self.c, self.w = model.config, model.weights

    def logits(self, tokens: list[int]) -> Floats:
        c = self.c
        x = self.w["token_embd.weight"][tokens] * (np.sqrt(c.n_embd) if c.gemma else 1.0)  # [T, D]
        for layer in range(c.n_layers):
            x = x + self._branch(
                layer, "post_attention_norm", self._attention(layer, self._norm(layer, "attn_norm", x))
            )
            x = x + self._branch(layer, "post_ffw_norm", self._mlp(layer, self._norm(layer, "ffn_norm", x)))
        head = self.w["token_embd.weight" if c.tied else "output.weight"]
        y: Floats = _rms_norm(x, self.w["output_norm.weight"], c.rms_eps) @ head.T
        return _cap(y, c.final_cap)

    def _weight(self, layer: int, name: str) -> Floats:
        return self.w[f"blk.{layer}.{name}.weight"]

    def _norm(self, layer: int, name: str, x: Floats) -> Floats:
        return _rms_norm(x, self._weight(layer, name), self.c.rms_eps)

    def _branch(self, layer: int, name: str, x: Floats) -> Floats:
        return self._norm(layer, name, x) if self.c.post_norms else x

    def _mlp(self, layer: int, x: Floats) -> Floats:
        gate, up = x @ self._weight(layer, "ffn_gate").T, x @ self._weight(layer, "ffn_up").T  # [T, F]
        if self.c.gemma:
            gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        else:
            gate = gate / (1 + np.exp(-gate))
        y: Floats = (gate * up) @ self._weight(layer, "ffn_down").T
        return y

    def _heads(self, layer: int, name: str, x: Floats) -> Floats:
        y = x @ self._weight(layer, name).T + self.w.get(f"blk.{layer}.{name}.bias", 0.0)
        return y.reshape(len(x), -1, self.c.head_dim)

    def _attention(self, layer: int, x: Floats) -> Floats:
        c = self.c
        q, k, v = (self._heads(layer, name, x) for name in ("attn_q", "attn_k", "attn_v"))  # [T, N or K, H]
        if c.qk_norm:
            q, k = self._norm(layer, "attn_q_norm", q), self._norm(layer, "attn_k_norm", k)
        q, k = self._rope(layer, q), self._rope(layer, k)
        k, v = (np.repeat(y.astype(np.float16).astype(np.float64), c.n_heads // c.n_kv_heads, axis=1) for y in (k, v))
        scores = _cap(np.einsum("tnh,snh->nts", q, k) / np.sqrt(c.head_dim), c.attention_cap)  # [N, T, S]
        distance = np.arange(len(x))[:, None] - np.arange(len(x))[None, :]  # [T, S]
        seen = (distance >= 0) & ((distance < c.window) | (not c.is_local(layer)))
        scores = np.where(seen, scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("nts,snh->tnh", p / p.sum(-1, keepdims=True), v).reshape(len(x), -1)
        y: Floats = mixed @ self._weight(layer, "attn_output").T
        return y

    def _rope(self, layer: int, x: Floats) -> Floats:
        c, local = self.c, self.c.is_local(layer)
        half = c.head_dim // 2
        frequencies = (c.rope_local_base if local else c.rope_base) ** (-2.0 * np.arange(half) / c.head_dim)
        magnitude = 1.0
        if not local:
            frequencies = frequencies * c.rope_scale / np.array(c.rope_freqs or 1.0)
        if c.yarn and not local:
            frequencies, magnitude = _yarn(frequencies, c.head_dim, c.rope_base, *c.yarn)
        turns = magnitude * np.exp(1j * np.arange(len(x))[:, None] * frequencies)[:, None, :]  # [T, 1, H/2]
        pairs = (
            x.reshape(*x.shape[:-1], half, 2) if c.interleaved_rope else np.stack([x[..., :half], x[..., half:]], -1)
        )
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * turns
        parts = (turned.real, turned.imag)
        return np.stack(parts, -1).reshape(x.shape) if c.interleaved_rope else np.concatenate(parts, -1)


def _rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    y: Floats = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight
    return y


def _yarn(frequencies: Floats, head_dim: int, base: float, factor: float, trained: float) -> tuple[Floats, float]:
    """YaRN with betas 32 and 1, as transformers computes it: frequencies, and the factor on cosines and sines."""

    def pair(rotations: float) -> float:
        return head_dim * np.log(trained / (rotations * 2 * np.pi)) / (2 * np.log(base))

    low, high = max(np.floor(pair(32.0)), 0), min(np.ceil(pair(1.0)), head_dim - 1)
    ramp = np.clip((np.arange(len(frequencies)) - low) / max(high - low, 1e-3), 0, 1)
    return frequencies / factor * ramp + frequencies * (1 - ramp), 0.1 * np.log(factor) + 1


def _cap(x: Floats, cap: float) -> Floats:
    return cap * np.tanh(x / cap) if cap else x


def _shapes(c: TinyConfig) -> dict[str, tuple[int, ...]]:
    """GGUF names and shapes, outermost dimension first."""
    queries, keys = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (c.n_embd,), "ffn_norm.weight": (c.n_embd,),
        "attn_q.weight": (queries, c.n_embd), "attn_k.weight": (keys, c.n_embd), "attn_v.weight": (keys, c.n_embd),
        "attn_output.weight": (c.n_embd, queries), "ffn_gate.weight": (c.n_ff, c.n_embd),
        "ffn_up.weight": (c.n_ff, c.n_embd), "ffn_down.weight": (c.n_embd, c.n_ff),
    }  # fmt: skip
    if c.post_norms:
        layer |= {"post_attention_norm.weight": (c.n_embd,), "post_ffw_norm.weight": (c.n_embd,)}
    if c.qk_norm:
        layer |= {"attn_q_norm.weight": (c.head_dim,), "attn_k_norm.weight": (c.head_dim,)}
    if c.qkv_bias:
        layer |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
    shapes = {"token_embd.weight": (c.n_vocab, c.n_embd), "output_norm.weight": (c.n_embd,)}
    if not c.tied:
        shapes["output.weight"] = (c.n_vocab, c.n_embd)
    return shapes | {f"blk.{i}.{name}": shape for i in range(c.n_layers) for name, shape in layer.items()}


def _write_metadata(writer: GGUFWriter, c: TinyConfig) -> None:
    integers = {
        "block_count": c.n_layers, "embedding_length": c.n_embd, "feed_forward_length": c.n_ff,
        "context_length": c.n_ctx_train, "attention.head_count": c.n_heads, "attention.head_count_kv": c.n_kv_heads,
        "attention.key_length": c.head_dim, "attention.value_length": c.head_dim,
    }  # fmt: skip
    if c.window:
        integers["attention.sliding_window"] = c.window
    for key, value in integers.items():
        writer.add_uint32(f"{c.architecture}.{key}", value)
    writer.add_float32(f"{c.architecture}.attention.layer_norm_rms_epsilon", c.rms_eps)
    writer.add_float32(f"{c.architecture}.rope.freq_base", c.rope_base)
    for key, value in c.keys.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(f"{c.architecture}.{key}", value)


def _write_vocabulary(writer: GGUFWriter, n_vocab: int) -> None:
    """A SentencePiece vocabulary: the pieces of `TinyModel.texts`, all alike in score."""
    writer.add_tokenizer_model("llama")
    writer.add_token_list(
        ["<pad>", "<eos>", "<bos>", "<unk>", *(chr(ord("!") + i) for i in range(n_vocab - 5)), "\u2581"]
    )
    writer.add_token_scores([0.0] * n_vocab)
    writer.add_token_types([3, 3, 3, 2] + [1] * (n_vocab - 4))
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def write_tiny(
    path: Path, config: TinyConfig, types: dict[str, str] | str = "F32", seed: int = 0, tensors_a_part: int = 0
) -> TinyModel:
    """Writes a model with random weights.

    Args:
      types: ggml type of every matrix, or by the end of its name (others are F32).
      tensors_a_part: Write several files of so many tensors, as gguf-split does; 0 writes one.
    """
    random, weights = np.random.default_rng(seed), {}
    writer = GGUFWriter(path, config.architecture, split_max_tensors=tensors_a_part)
    _write_metadata(writer, config)
    if config.vocabulary:
        _write_vocabulary(writer, config.n_vocab)
    for name, shape in _shapes(config).items():
        vector = len(shape) == 1
        values = random.normal(1.0 if vector else 0.0, 0.2 if vector else 1.5 * shape[-1] ** -0.5, shape).astype(
            np.float32
        )
        wanted = types if isinstance(types, str) else next((t for end, t in types.items() if name.endswith(end)), "F32")
        kind = GGMLQuantizationType.F32 if vector else GGMLQuantizationType[wanted]
        data = gguf.quantize(values, kind)
        weights[name] = np.asarray(gguf.dequantize(data, kind), np.float64)
        writer.add_tensor(name, data, raw_dtype=kind)
    if config.rope_freqs:
        writer.add_tensor("rope_freqs.weight", np.array(config.rope_freqs, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if tensors_a_part:
        path = min(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))
    return TinyModel(path, config, weights)


MakeTiny = Callable[..., TinyModel]


@pytest.fixture
def make_tiny(tmp_path: Path) -> MakeTiny:
    """Writes a tiny model: make_tiny("gemma3", types="Q8_0", window=5, ...)."""

    def make(
        family: str, *, types: dict[str, str] | str = "F32", seed: int = 0, tensors_a_part: int = 0, **changes: Any
    ) -> TinyModel:
        config = replace(FAMILIES[family], **changes)
        return write_tiny(tmp_path / f"{family}-{seed}.gguf", config, types, seed, tensors_a_part)

    return make
