"""Writes a checkpoint as one .tflite file that LiteRT and LiteRT-LM run, without torch or tensorflow.

The file has one subgraph per signature, all over the same weights:

    prefill_T   tokens int32 [1, T], input_pos int32 [T]   -> caches
    decode      tokens int32 [1, 1], input_pos int32 [1]   -> caches, logits [1, 1, V]
    score_T     as prefill_T                               -> caches, logits [1, T, V]; for measuring a model

    c256_decode, c256_prefill_T, ...                       the same over caches of C = 256 positions

and each takes and returns, per layer i, `kv_cache_k_i` [1, K, C, H] and `kv_cache_v_i` [1, K, H, C] (transposed, so
that both products of attention run along contiguous rows). Positions must be consecutive. Rows of the cache beyond a
token's position never reach it, so a prompt's last chunk may be padded, and rewinding costs nothing.

Attention costs what the cache could hold, not what it holds. So beside the caches of the whole context, under the
names that LiteRT-LM knows, there are signatures over smaller ones, with which attar's own session begins.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attar.engine.checkpoint import load_config, stream_tensors
from attar.engine.config import Activation, ModelConfig
from attar.engine.tokenizer import Tokenizer, load_tokenizer, save_tokenizer
from attar.export import tflite_ops as ops
from attar.export.decoder import AttentionSpec, emit_hidden, emit_logits
from attar.export.errors import ExportError
from attar.export.onnx_folder import has_tokenizer
from attar.export.tflite_file import FLOAT32, INT32, ModelBuilder
from attar.export.tflite_graph import GraphBuilder, Tensor
from attar.export.tflite_reader import METADATA
from attar.export.tflite_weights import Precision, WeightTable

DEFAULT_CONTEXT_TOKENS = 1280  # every decode step attends over the whole cache, used or not
DEFAULT_PREFILL_LENGTHS = (32, 128)  # 512 is no faster a token than 128, and each length costs loading time
SCORE_LENGTH = 64
SMALLEST_CACHE_TOKENS = 256
_CACHE_GROWTH = 4

# Added to masked scores once per position beyond what may be seen: far below any score, far from float32's end.
_MASK_SLOPE = 1e30


@dataclass(frozen=True)
class _Rotation:
    """cos and sin for both halves of a head, [1, T, 1, H] each; sin is negative in the first half."""

    cos: Tensor
    sin: Tensor


class TfliteEmitter:
    """Emits the decoder for one signature over `length` tokens with caches of `context_length` positions."""

    def __init__(self, graph: GraphBuilder, weights: WeightTable, length: int, context_length: int) -> None:
        self._g = graph
        self._weights = weights
        self._length = length
        self._context_length = context_length
        self.inputs = {
            "tokens": graph.input("tokens", (1, length), INT32),
            "input_pos": graph.input("input_pos", (length,), INT32),
        }
        self.caches: dict[str, Tensor] = {}
        # Shared by the layers: made on first use, because families differ in what they need.
        self._rotations: dict[tuple[bytes, float], _Rotation] = {}
        self._masks: dict[int | None, Tensor] = {}
        self._starts: tuple[Tensor, Tensor] | None = None

    def embedding(self, weight: str) -> Tensor:
        g, table = self._g, self._g.stored(self._weights.get(weight))
        indices = ops.reshape(g, self.inputs["tokens"], (self._length,))
        rows = ops.gather_rows(g, table, indices)
        return ops.reshape(g, rows, (1, self._length, table.shape[1]))

    def scale(self, x: Tensor, factor: float) -> Tensor:
        return ops.mul(self._g, x, ops.scalar(self._g, factor))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return ops.add(self._g, x, y)

    def linear(self, x: Tensor, weight: str) -> Tensor:
        return ops.fully_connected(self._g, x, self._g.stored(self._weights.get(weight)))

    def rms_norm(self, x: Tensor, weight: str, eps: float, plus_one: bool) -> Tensor:
        g = self._g
        mean_square = ops.mean_last(g, ops.mul(g, x, x))
        inverse = ops.rsqrt(g, ops.add(g, mean_square, ops.scalar(g, eps)))
        factor = g.stored(self._weights.get(weight))
        return ops.mul(g, ops.mul(g, x, inverse), factor)

    def head_norm(self, x: Tensor, weight: str, num_heads: int, eps: float, plus_one: bool) -> Tensor:
        head_dim = x.shape[-1] // num_heads
        heads = ops.reshape(self._g, x, (1, self._length, num_heads, head_dim))
        return ops.reshape(self._g, self.rms_norm(heads, weight, eps, plus_one), x.shape)

    def gated(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        g = self._g
        if activation == "silu":
            return ops.mul(g, ops.mul(g, gate, ops.logistic(g, gate)), up)
        return ops.mul(g, ops.gelu_tanh(g, gate), up)

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        return self.scale(ops.tanh(self._g, self.scale(x, 1 / cap)), cap)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
        g, T, H = self._g, self._length, spec.head_dim
        K, N = spec.num_kv_heads, spec.num_heads
        keys, values = self._append(spec, k, v)  # [1, K, C, H], [1, K, H, C]
        # Soft-capped scores are wanted as tanh(score / cap), so q carries 1 / cap besides the scale.
        cap = spec.soft_cap
        q = self._rotate(q, spec, N, spec.scale / cap if cap else spec.scale)
        # Query heads of one KV head become rows of one product: head-major, then token.
        rows = ops.reshape(g, self._heads_first(q), (1, K, N // K * T, H))
        scores = ops.matmul_transposed(g, rows, keys)  # [1, K, G * T, C]
        if cap:
            scores = self.scale(ops.tanh(g, scores), cap)
        scores = ops.add(g, scores, self._mask(spec.window, N // K))
        attended = ops.matmul_transposed(g, ops.softmax(g, scores), values)  # [1, K, G * T, H]
        attended = ops.reshape(g, attended, (1, N, T, H))
        if T > 1:
            attended = ops.transpose(g, attended, (0, 2, 1, 3))
        return ops.reshape(g, attended, (1, T, N * H))

    def _append(self, spec: AttentionSpec, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes k and v [1, T, K * H] into the layer's caches, whose new versions are returned."""
        g, T, K, H, C = self._g, self._length, spec.num_kv_heads, spec.head_dim, self._context_length
        k_name, v_name = f"kv_cache_k_{spec.layer}", f"kv_cache_v_{spec.layer}"
        self.inputs[k_name] = g.input(k_name, (1, K, C, H), FLOAT32)
        self.inputs[v_name] = g.input(v_name, (1, K, H, C), FLOAT32)
        start_k, start_v = self._cache_starts()
        new_k = self._heads_first(self._rotate(k, spec, K, 1.0))  # [1, K, T, H]
        heads_v = ops.reshape(g, v, (1, T, K, H))
        new_v = ops.transpose(g, heads_v, (0, 2, 3, 1)) if T > 1 else ops.reshape(g, v, (1, K, H, 1))  # [1, K, H, T]
        self.caches[k_name] = ops.update_slice(g, self.inputs[k_name], new_k, start_k)
        self.caches[v_name] = ops.update_slice(g, self.inputs[v_name], new_v, start_v)
        return self.caches[k_name], self.caches[v_name]

    def _heads_first(self, x: Tensor) -> Tensor:
        """[1, T, N, H] to [1, N, T, H]."""
        if self._length > 1:
            return ops.transpose(self._g, x, (0, 2, 1, 3))
        return ops.reshape(self._g, x, (1, x.shape[2], 1, x.shape[3]))

    def _rotate(self, x: Tensor, spec: AttentionSpec, num_heads: int, factor: float) -> Tensor:
        """Rotary embedding of x [1, T, N * H] times `factor`: [1, T, N, H]."""
        g, T, H = self._g, self._length, spec.head_dim
        rotation = self._rotation(spec, factor)
        x = ops.reshape(g, x, (1, T, num_heads, H))
        half = (1, T, num_heads, H // 2)
        first, second = ops.slice_from(g, x, (0, 0, 0, 0), half), ops.slice_from(g, x, (0, 0, 0, H // 2), half)
        swapped = ops.concat_last(g, [second, first])
        return ops.add(g, ops.mul(g, x, rotation.cos), ops.mul(g, swapped, rotation.sin))

    def _rotation(self, spec: AttentionSpec, factor: float) -> _Rotation:
        """cos and sin times `factor` at the signature's positions; one look-up serves all layers of a kind."""
        key = (spec.rope_frequencies.tobytes(), factor)
        if key not in self._rotations:
            if factor == 1.0:
                self._rotations[key] = self._look_up_rotation(spec.rope_frequencies)
            else:
                plain = self._rotation(spec, 1.0)
                self._rotations[key] = _Rotation(self.scale(plain.cos, factor), self.scale(plain.sin, factor))
        return self._rotations[key]

    def _look_up_rotation(self, frequencies: NDArray[np.float32]) -> _Rotation:
        # The angle is rounded to float32 because the training forward, and so the model, knows it that way.
        angles = np.arange(self._context_length, dtype=np.float32)[:, None] * frequencies  # [C, H / 2]
        cos, sin = np.cos(angles, dtype=np.float64), np.sin(angles, dtype=np.float64)
        return _Rotation(self._look_up([cos, cos]), self._look_up([-sin, sin]))

    def _look_up(self, halves: Sequence[NDArray[np.float64]]) -> Tensor:
        """Rows of the table made of two halves [C, H / 2], at the signature's positions: [1, T, 1, H]."""
        table = np.concatenate(halves, axis=1).astype(np.float32)
        rows = ops.gather_rows(self._g, self._g.constant(table), self.inputs["input_pos"])
        return ops.reshape(self._g, rows, (1, self._length, 1, table.shape[1]))

    def _mask(self, window: int | None, groups: int) -> Tensor:
        """What is added to scores: 0 where query position - key position is in [0, window), else hugely negative.

        Shape [1, 1, G * T, C], or [1, 1, 1, C] for one token. Float arithmetic only, which XNNPACK runs: for whole
        numbers d, min(d, 0) is 0 where d >= 0 and at most -1 elsewhere.
        """
        if window not in self._masks:
            g, T = self._g, self._length
            keys = g.constant(np.arange(self._context_length, dtype=np.float32).reshape(1, 1, 1, -1))
            queries = ops.reshape(g, ops.to_float(g, self.inputs["input_pos"]), (1, 1, T, 1))
            distance, zero = ops.sub(g, queries, keys), ops.scalar(g, 0.0)
            outside = ops.minimum(g, distance, zero)
            if window is not None:
                left = ops.sub(g, ops.scalar(g, window - 1.0), distance)
                outside = ops.add(g, outside, ops.minimum(g, left, zero))
            mask = self.scale(outside, _MASK_SLOPE)
            self._masks[window] = ops.tile(g, mask, (1, 1, groups, 1)) if T > 1 and groups > 1 else mask
        return self._masks[window]

    def _cache_starts(self) -> tuple[Tensor, Tensor]:
        """Where a chunk goes in the k and v caches: [0, 0, position, 0] and [0, 0, 0, position]."""
        if self._starts is None:
            g, position = self._g, self.inputs["input_pos"]
            if self._length > 1:
                position = ops.slice_from(g, position, (0,), (1,))
            self._starts = ops.int_vector(g, [0, 0, position, 0]), ops.int_vector(g, [0, 0, 0, position])
        return self._starts


@dataclass(frozen=True)
class TfliteExport:
    """What was written.

    Attributes:
      size_bytes: Length of the .tflite file.
      context_length: Positions that its caches hold.
      warnings: What the user should know, one sentence each.
    """

    path: Path
    size_bytes: int
    context_length: int
    warnings: tuple[str, ...]


def export_tflite(
    checkpoint: Path,
    out: Path,
    weights: Precision = "fp32",
    context_length: int | None = None,
    prefill_lengths: Sequence[int] = DEFAULT_PREFILL_LENGTHS,
    smallest_cache: int = SMALLEST_CACHE_TOKENS,
) -> TfliteExport:
    """Writes a model as a .tflite file, with the tokenizer's files beside it; an earlier export there is replaced.

    Args:
      checkpoint: Hugging Face folder or GGUF file.
      out: The file to write; its folder must hold no other model's tokenizer.
      weights: Precision of all matrices. int8 has one scale per output row; the runtime then rounds activations to
        8 bits as well.
      context_length: Positions of the caches; None takes what the model was trained for, at most 1,280.
      prefill_lengths: Prompt tokens per call for which to write signatures; those beyond the context are left out.
      smallest_cache: Signatures over smaller caches are written down to this many positions; at least 1.

    Raises:
      ExportError: If a weight is not finite, the file would exceed 2 GiB or cannot be written, or the folder holds
        another tokenizer.
      CheckpointError: If `checkpoint` is not a model.
      GgufError: The same for a GGUF file.
      TokenizerError: If its tokenizer cannot be read.
    """
    if weights not in ("fp32", "int8"):
        raise ExportError(f"weights must be 'fp32' or 'int8' in a .tflite file, got {weights!r}")
    config = load_config(checkpoint)
    context = _resolve_context(config, context_length)
    _write_tokenizer(checkpoint, out)
    model = ModelBuilder("attar")
    table = WeightTable(config, weights)
    for size in _cache_sizes(context, smallest_cache):
        prefix = "" if size == context else f"c{size}_"
        for length in sorted({length for length in prefill_lengths if 1 < length <= size}):
            _emit_signature(model, config, table, f"{prefix}prefill_{length}", length, size, with_logits=False)
        _emit_signature(model, config, table, f"{prefix}decode", 1, size, with_logits=True)
    score_length = min(SCORE_LENGTH, context)
    _emit_signature(model, config, table, f"score_{score_length}", score_length, context, with_logits=True)
    model.add_metadata(METADATA, {"config": config.to_hf(), "context_length": context, "weights": weights})
    size_bytes = model.write(out, stream_tensors(checkpoint, config))
    return TfliteExport(out, size_bytes, context, _warnings(config, checkpoint, context))


def _cache_sizes(context: int, smallest: int) -> list[int]:
    """The context and a quarter of it and so on, none under `smallest`; largest first."""
    sizes = [context]
    while sizes[-1] >= _CACHE_GROWTH * smallest:
        sizes.append(-(-sizes[-1] // _CACHE_GROWTH))
    return sizes


def _emit_signature(
    model: ModelBuilder,
    config: ModelConfig,
    weights: WeightTable,
    key: str,
    length: int,
    context_length: int,
    *,
    with_logits: bool,
) -> None:
    """Adds one signature over `length` tokens to the model."""
    graph = GraphBuilder(model, key)
    emitter = TfliteEmitter(graph, weights, length, context_length)
    hidden = emit_hidden(config, emitter)
    outputs = dict(emitter.caches)
    if with_logits:
        outputs["logits"] = emit_logits(config, emitter, hidden)
    graph.publish(emitter.inputs, outputs)


def _resolve_context(config: ModelConfig, asked: int | None) -> int:
    if asked is None:
        return min(config.max_position_embeddings, DEFAULT_CONTEXT_TOKENS)
    if not 1 < asked <= config.max_position_embeddings:
        raise ExportError(
            f"context_length must be between 2 and the model's {config.max_position_embeddings}, got {asked}"
        )
    return asked


def _write_tokenizer(checkpoint: Path, out: Path) -> None:
    """Puts the tokenizer beside the file, unless it is there already."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if not has_tokenizer(checkpoint):
            return
        tokenizer = load_tokenizer(checkpoint)
        if not has_tokenizer(out.parent):
            save_tokenizer(tokenizer, out.parent)
            # A tokenizer's own files name one end token; chat models have more, and readers look here for them.
            end_tokens = json.dumps({"eos_token_id": list(tokenizer.eos_token_ids)})
            (out.parent / "generation_config.json").write_text(end_tokens + "\n", encoding="utf-8")
        elif _identity(load_tokenizer(out.parent)) != _identity(tokenizer):
            raise ExportError(
                f"{out.parent}: holds the tokenizer or chat template of another model; choose another folder"
            )
    except OSError as error:
        raise ExportError(f"{out.parent}: cannot be written: {error}; choose another folder or free space") from error


def _identity(tokenizer: Tokenizer) -> tuple[object, ...]:
    """What two models must share to share a folder: base and chat models often differ in the template alone."""
    return tokenizer.fingerprint(), tokenizer.eos_token_ids, tokenizer.chat_template


def _warnings(config: ModelConfig, checkpoint: Path, context: int) -> tuple[str, ...]:
    warnings = []
    if context < config.max_position_embeddings:
        trained = config.max_position_embeddings
        warnings.append(
            f"the file holds {context} positions, the model was trained for {trained}; --context asks for more"
        )
    if not has_tokenizer(checkpoint):
        warnings.append(f"{checkpoint} has no tokenizer, so the file runs on token ids only")
    return tuple(warnings)
