"""Writes a checkpoint as a folder that onnxruntime runs: graph, weights, tokenizer and configuration.

The graph follows what onnxruntime-genai's decoders look like: `input_ids`, `attention_mask` and one
`past_key_values.N.key/value` pair per layer go in; `logits` and `present.N.key/value` come out. Its operators of the
com.microsoft domain are described in onnxruntime's `docs/ContribOperators.md`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attar.engine.checkpoint import load_config, read_tensors
from attar.engine.config import Activation, ModelConfig
from attar.export.decoder import AttentionSpec, emit_hidden, emit_logits
from attar.export.errors import ExportError
from attar.export.onnx_folder import DATA, MODEL, has_tokenizer, replaced_folder, write_companions
from attar.export.onnx_graph import MICROSOFT, GraphBuilder
from attar.export.onnx_reader import CONFIG_KEY, read_stored
from attar.export.onnx_weights import Float32, OnnxWeights, WeightType

# How many of the last positions get logits. A runtime that does not feed it gets the last one only, which is all
# that generation needs and spares the head's work and memory on the rest of a prompt.
LOGITS_TO_KEEP = "logits_to_keep"
# Metadata that OrtSession reads: the most positions that the rotary tables hold.
CONTEXT_KEY = "attar.context_length"
_DEFAULT_CONTEXT_TOKENS = 4096


class OnnxEmitter:
    """Emits the decoder as ONNX nodes; a value is its name in the graph."""

    def __init__(self, graph: GraphBuilder, weights: OnnxWeights, context_length: int) -> None:
        self._graph = graph
        self._weights = weights
        self._context_length = context_length
        # Sums whose Add is not emitted yet: the norm that follows takes it in (SkipSimplifiedLayerNormalization).
        self._pending_sums: dict[str, tuple[str, str]] = {}
        # Products (x, weight) that are not emitted yet: attention takes q, k and v as one product where it can.
        self._pending_products: dict[str, tuple[str, str]] = {}
        self._token_input = graph.input("input_ids", np.int64, ["batch", "sequence"])
        mask = graph.input("attention_mask", np.int64, ["batch", "total_sequence"])
        self._last_position, self._total_length = self._sequence_lengths(mask)

    def embedding(self, weight: str) -> str:
        return self._weights.gather(weight, self._token_input)

    def scale(self, x: str, factor: float) -> str:
        return self._graph.node("Mul", [self.value(x), self._scalar(factor)])

    def add(self, x: str, y: str) -> str:
        total = self._graph.fresh("sum")
        self._pending_sums[total] = (self.value(x), self.value(y))
        return total

    def linear(self, x: str, weight: str) -> str:
        product = self._graph.fresh("product")
        self._pending_products[product] = (self.value(x), weight)
        return product

    def rms_norm(self, x: str, weight: str, eps: float, plus_one: bool) -> str:
        gamma = self._weights.norm(weight, plus_one)
        if x not in self._pending_sums:
            return self._simplified_layer_norm(x, gamma, eps)
        left, right = self._pending_sums.pop(x)
        out = self._graph.fresh("norm")
        inputs, outputs = [left, right, gamma], [out, "", "", x]
        return self._graph.node("SkipSimplifiedLayerNormalization", inputs, outputs, domain=MICROSOFT, epsilon=eps)

    def head_norm(self, x: str, weight: str, num_heads: int, eps: float, plus_one: bool) -> str:
        heads = self._graph.constant(f"shape_heads_{num_heads}", np.array([0, 0, num_heads, -1], np.int64))
        flat = self._graph.constant("shape_flat", np.array([0, 0, -1], np.int64))
        split = self._graph.node("Reshape", [self.value(x), heads])  # [B, T, N, H]
        normed = self._simplified_layer_norm(split, self._weights.norm(weight, plus_one), eps)
        return self._graph.node("Reshape", [normed, flat])

    def attention(self, q: str, k: str, v: str, spec: AttentionSpec) -> str:
        past = [self._cache_input(spec, part) for part in ("key", "value")]
        present = [f"present.{spec.layer}.{part}" for part in ("key", "value")]
        out = self._graph.node(
            "GroupQueryAttention",
            [*self._queries_keys_values(q, k, v), *past, self._last_position, self._total_length, *self._rope(spec)],
            [self._graph.fresh("attention"), *present],
            domain=MICROSOFT,
            **_attention_attributes(spec),
        )
        for name in present:
            self._graph.output(name, np.float32, ("batch", spec.num_kv_heads, "present_sequence", spec.head_dim))
        return out

    def gated(self, gate: str, up: str, activation: Activation) -> str:
        if activation == "silu":
            active = self._graph.node("QuickGelu", [self.value(gate)], domain=MICROSOFT, alpha=1.0)
        else:
            active = self._graph.node("Gelu", [self.value(gate)], approximate="tanh")
        return self._graph.node("Mul", [active, self.value(up)])

    def soft_cap(self, x: str, cap: float) -> str:
        bounded = self._graph.node("Tanh", [self._graph.node("Div", [self.value(x), self._scalar(cap)])])
        return self._graph.node("Mul", [bounded, self._scalar(cap)])

    def last_positions(self, hidden: str) -> str:
        """The last `logits_to_keep` positions of hidden [B, T, D]."""
        keep = self._graph.overridable(LOGITS_TO_KEEP, np.array([1], np.int64))
        end = self._graph.constant("slice_end", np.array([np.iinfo(np.int64).max], np.int64))
        axis = self._graph.constant("slice_axis", np.array([1], np.int64))
        start = self._graph.node("Neg", [keep])
        return self._graph.node("Slice", [hidden, start, end, axis])

    def _sequence_lengths(self, mask: str) -> tuple[str, str]:
        """Index of each sequence's last token int32 [B], and the length of the longest, an int32 scalar."""
        axis = self._graph.constant("mask_axis", np.array([1], np.int64))
        one = self._graph.constant("one", np.array([1], np.int64))
        index = self._graph.constant("length_index", np.array(1, np.int64))
        counts = self._graph.node("ReduceSum", [mask, axis], keepdims=0)
        last = self._graph.node("Cast", [self._graph.node("Sub", [counts, one])], ["last_position"], to=6)
        length = self._graph.node("Gather", [self._graph.node("Shape", [mask]), index])
        return last, self._graph.node("Cast", [length], ["total_length"], to=6)

    def _queries_keys_values(self, q: str, k: str, v: str) -> list[str]:
        """The first three inputs of the attention: one product for all where nothing lies between (no q/k norm)."""
        if not {q, k, v} <= self._pending_products.keys():
            return [self.value(x) for x in (q, k, v)]
        products = [self._pending_products.pop(x) for x in (q, k, v)]
        weights = [weight for _, weight in products]
        return [self._weights.matmul(weights, products[0][0], self._graph.fresh("qkv")), "", ""]

    def _cache_input(self, spec: AttentionSpec, part: str) -> str:
        shape = ("batch", spec.num_kv_heads, "past_sequence", spec.head_dim)
        return self._graph.input(f"past_key_values.{spec.layer}.{part}", np.float32, shape)

    def _rope(self, spec: AttentionSpec) -> list[str]:
        """Cosine and sine tables [context, H / 2] of the layer's kind, stored once for all layers alike."""
        kind = "full" if spec.window is None else "local"
        # Angles in float64: in float32 an angle of 4,000 radians is already off by 2e-4.
        angles = np.arange(self._context_length)[:, None] * spec.rope_frequencies.astype(np.float64)
        cos = self._graph.constant(f"rope_{kind}_cos", np.cos(angles).astype(np.float32))
        sin = self._graph.constant(f"rope_{kind}_sin", np.sin(angles).astype(np.float32))
        return [cos, sin]

    def _simplified_layer_norm(self, x: str, gamma: str, eps: float) -> str:
        inputs = [self.value(x), gamma]
        return self._graph.node("SimplifiedLayerNormalization", inputs, epsilon=eps, axis=-1, stash_type=1)

    def value(self, x: str) -> str:
        """The name of x, after emitting its node if that was put off."""
        if x in self._pending_sums:
            self._graph.node("Add", list(self._pending_sums.pop(x)), [x])
        if x in self._pending_products:
            source, weight = self._pending_products.pop(x)
            self._weights.matmul([weight], source, x)
        return x

    def _scalar(self, value: float) -> str:
        return self._graph.constant(f"scalar_{value!r}", np.array(value, np.float32))


def _attention_attributes(spec: AttentionSpec) -> dict[str, int | float]:
    return {
        "num_heads": spec.num_heads,
        "kv_num_heads": spec.num_kv_heads,
        "scale": spec.scale,
        "do_rotary": 1,
        "rotary_interleaved": 0,
        "local_window_size": -1 if spec.window is None else spec.window,
        "softcap": spec.soft_cap or 0.0,
    }


@dataclass(frozen=True)
class OnnxExport:
    """What was written.

    Attributes:
      size_bytes: Of the graph and its weights, without the tokenizer.
      warnings: What a user of the folder should know, one sentence each.
    """

    path: Path
    size_bytes: int
    context_length: int
    warnings: tuple[str, ...]


def export_onnx(
    checkpoint: Path,
    out_dir: Path,
    weights: WeightType = "fp32",
    *,
    embedding: WeightType | None = None,
    context_length: int | None = None,
    accuracy_level: int = 4,
) -> OnnxExport:
    """Writes a model as a folder for onnxruntime and onnxruntime-genai; an earlier export there is replaced.

    Args:
      checkpoint: Hugging Face folder or GGUF file.
      out_dir: The folder to write.
      weights: Precision of the projections.
      embedding: Precision of the token table and the head; None is that of the projections, but int8 where they
        are int4, which costs the table too much.
      context_length: Most positions that the rotary tables hold; None takes what the model was trained for, at
        most 4,096.
      accuracy_level: With quantised weights, how the other factor is multiplied: 4 rounds it to int8 by blocks,
        which is fast, 0 leaves it in float32.

    Raises:
      ExportError: If a weight is not finite, or the folder cannot be written or holds something else.
      CheckpointError: If `checkpoint` is not a model.
      GgufError: The same for a GGUF file.
      TokenizerError: If its tokenizer cannot be read.
    """
    config = load_config(checkpoint)
    context = _resolve_context(config, context_length)
    table = embedding or ("int8" if weights == "int4" else weights)
    with replaced_folder(out_dir) as folder:
        with GraphBuilder(folder / DATA) as graph:
            store = OnnxWeights(graph, read_tensors(checkpoint), weights, table, accuracy_level)
            _emit(config, OnnxEmitter(graph, store, context), graph)
            metadata = {CONTEXT_KEY: str(context), CONFIG_KEY: json.dumps(config.to_hf())}
            graph.save(folder / MODEL, metadata)
        size = sum((folder / name).stat().st_size for name in (MODEL, DATA))
        choices = {"format": "onnx", "weights": weights, "embedding": table, "accuracy_level": accuracy_level}
        write_companions(folder, checkpoint, config, context, choices)
    return OnnxExport(out_dir, size, context, _warnings(config, checkpoint, context))


def stored_tensors(path: Path) -> dict[str, Float32]:
    """What the weights of an exported folder really are: float32 under Hugging Face names."""
    return read_stored(path)[1]


def _emit(config: ModelConfig, emitter: OnnxEmitter, graph: GraphBuilder) -> None:
    hidden = emitter.last_positions(emit_hidden(config, emitter))
    logits = emitter.value(emit_logits(config, emitter, hidden))
    # The stated 1 is how onnxruntime-genai learns that a prompt gets one row; with more kept there are more.
    graph.output(graph.node("Identity", [logits], ["logits"]), np.float32, ("batch", 1, config.vocab_size))


def _resolve_context(config: ModelConfig, asked: int | None) -> int:
    if asked is None:
        return min(config.max_position_embeddings, _DEFAULT_CONTEXT_TOKENS)
    if not 1 <= asked <= config.max_position_embeddings:
        raise ExportError(
            f"context_length must be between 1 and the model's {config.max_position_embeddings}, got {asked}"
        )
    return asked


def _warnings(config: ModelConfig, checkpoint: Path, context: int) -> tuple[str, ...]:
    warnings = []
    if context < config.max_position_embeddings:
        trained = config.max_position_embeddings
        warnings.append(
            f"the file holds {context} positions, the model was trained for {trained}; --context asks for more"
        )
    if not has_tokenizer(checkpoint):
        warnings.append(f"{checkpoint} has no tokenizer, so the folder runs on token ids only")
    return tuple(warnings)
