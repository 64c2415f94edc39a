"""Writes a checkpoint as a folder that onnxruntime runs: graph, weights, tokenizer and configuration.

The graph follows what onnxruntime-genai's decoders look like: `input_ids`, `attention_mask` and one
`past_key_values.N.key/value` pair per layer go in; `logits` and `present.N.key/value` come out. Its operators of the
com.microsoft domain are described in onnxruntime's `docs/ContribOperators.md`.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

import numpy as np

from attar.engine.config import Activation, ModelConfig
from attar.export.decoder import AttentionSpec, emit_hidden, emit_logits
from attar.export.onnx_graph import MICROSOFT, GraphBuilder
from attar.export.onnx_weights import Float32, OnnxWeights, WeightType

# How many of the last positions get logits. A runtime that does not feed it gets the last one only, which is all
# that generation needs and spares the head's work and memory on the rest of a prompt.
LOGITS_TO_KEEP = "logits_to_keep"


class OnnxEmitter:
    """Emits the decoder as ONNX nodes; a value is its name in the graph."""

    def __init__(self, graph: GraphBuilder, weights: OnnxWeights, context_length: int) -> None:
        self._graph = graph
        self._weights = weights
        self._context_length = context_length
        # Sums whose Add is not emitted yet: the norm that follows takes it in (SkipSimplifiedLayerNormalization).
        self._pending_sums: dict[str, tuple[str, str]] = {}
        self._token_input = graph.input("input_ids", np.int64, ["batch", "sequence"])
        mask = graph.input("attention_mask", np.int64, ["batch", "total_sequence"])
        self._last_position, self._total_length = self._sequence_lengths(mask)

    def embedding(self, weight: str) -> str:
        return self._weights.gather(weight, self._token_input)

    def scale(self, x: str, factor: float) -> str:
        return self._graph.node("Mul", [self._value(x), self._scalar(factor)])

    def add(self, x: str, y: str) -> str:
        total = self._graph.fresh("sum")
        self._pending_sums[total] = (self._value(x), self._value(y))
        return total

    def linear(self, x: str, weight: str) -> str:
        return self._weights.matmul(weight, self._value(x))

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
        split = self._graph.node("Reshape", [self._value(x), heads])  # [B, T, N, H]
        normed = self._simplified_layer_norm(split, self._weights.norm(weight, plus_one), eps)
        return self._graph.node("Reshape", [normed, flat])

    def attention(self, q: str, k: str, v: str, spec: AttentionSpec) -> str:
        cache = [f"past_key_values.{spec.layer}.{part}" for part in ("key", "value")]
        present = [f"present.{spec.layer}.{part}" for part in ("key", "value")]
        for name in cache:
            shape = ["batch", spec.num_kv_heads, "past_sequence", spec.head_dim]
            self._graph.input(name, np.float32, shape)
        attributes = _attention_attributes(spec)
        inputs = [q, k, v, *cache, self._last_position, self._total_length, *self._rope(spec)]
        out = self._graph.node(
            "GroupQueryAttention",
            inputs,
            [self._graph.fresh("attention"), *present],
            domain=MICROSOFT,
            **attributes,
        )
        for name in present:
            shape = ["batch", spec.num_kv_heads, "present_sequence", spec.head_dim]
            self._graph.output(name, np.float32, shape)
        return out

    def gated(self, gate: str, up: str, activation: Activation) -> str:
        if activation == "silu":
            active = self._graph.node("QuickGelu", [gate], domain=MICROSOFT, alpha=1.0)
        else:
            active = self._graph.node("Gelu", [gate], approximate="tanh")
        return self._graph.node("Mul", [active, up])

    def soft_cap(self, x: str, cap: float) -> str:
        bounded = self._graph.node("Tanh", [self._graph.node("Div", [x, self._scalar(cap)])])
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

    def _rope(self, spec: AttentionSpec) -> list[str]:
        """Cosine and sine tables [context, H / 2] of the layer's kind, stored once for all layers alike."""
        kind = "full" if spec.window is None else "local"
        # Angles in float64: in float32 an angle of 4,000 radians is already off by 2e-4.
        angles = np.arange(self._context_length)[:, None] * spec.rope_frequencies.astype(np.float64)
        cos = self._graph.constant(f"rope_{kind}_cos", np.cos(angles).astype(np.float32))
        sin = self._graph.constant(f"rope_{kind}_sin", np.sin(angles).astype(np.float32))
        return [cos, sin]

    def _simplified_layer_norm(self, x: str, gamma: str, eps: float) -> str:
        inputs = [self._value(x), gamma]
        return self._graph.node("SimplifiedLayerNormalization", inputs, epsilon=eps, axis=-1, stash_type=1)

    def _value(self, x: str) -> str:
        """The name of x, after emitting its Add if that was put off."""
        if x in self._pending_sums:
            self._graph.node("Add", list(self._pending_sums.pop(x)), [x])
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


def build_graph(
    config: ModelConfig,
    tensors: MutableMapping[str, Float32],
    model_path: Path,
    context_length: int,
    weights: WeightType,
    embedding: WeightType,
    accuracy_level: int,
) -> None:
    """Writes graph and weights to `model_path` and, beside it, `model_path` + ".data"; empties `tensors`."""
    with GraphBuilder(model_path.with_name(model_path.name + ".data")) as graph:
        store = OnnxWeights(graph, tensors, weights, embedding, accuracy_level)
        emitter = OnnxEmitter(graph, store, context_length)
        hidden = emitter.last_positions(emit_hidden(config, emitter))
        logits = graph.node("Identity", [emit_logits(config, emitter, hidden)], ["logits"])
        graph.output(logits, np.float32, ["batch", "kept", config.vocab_size])
        graph.save(model_path, {"attar.context_length": str(context_length), "attar.weights": weights})
