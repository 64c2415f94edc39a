"""What a model needs at the least, read from its file: the bytes of one decoded token, the multiply-adds of a prompt.

Decoding one token reads every weight matrix once (a tied table once, as the head; one row of a table that is not) and
the keys and values of the tokens before it, as far back as each layer looks. Reading a prompt of T tokens multiplies
each token by every matrix, the head only by the last one, and forms its attention's scores and sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from attar.engine.config import ModelConfig
from attar.engine.gguf_file import GgufFile, read_gguf
from attar.engine.gguf_reader import config_from_gguf

_TABLE, _HEAD = "token_embd.weight", "output.weight"

F16_BYTES = 2


@dataclass(frozen=True)
class Needs:
    """Of one GGUF.

    Attributes:
      weight_bytes: Read for each decoded token, as the file stores them.
      matrix_macs: Multiply-adds of one token with all matrices but the head.
      head_macs: With the head.
      windows: Keys that each layer's query sees at most; None is all.
      kv_values: Values that a layer caches for each token, keys and values together.
      attention_macs: Of one query with one key and its value, all heads of a layer.
    """

    weight_bytes: int
    matrix_macs: int
    head_macs: int
    windows: tuple[int | None, ...]
    kv_values: int
    attention_macs: int

    def decode_bytes(self, depth: int, cache_bytes_per_value: float = F16_BYTES) -> float:
        """Read for one token after `depth` others; its own key is not read but made."""
        keys = sum(depth if window is None else min(depth, window - 1) for window in self.windows)
        return self.weight_bytes + keys * self.kv_values * cache_bytes_per_value

    def decode_macs(self, depth: int) -> int:
        """Of one token after `depth` others."""
        keys = sum(depth + 1 if window is None else min(depth + 1, window) for window in self.windows)
        return self.matrix_macs + self.head_macs + keys * self.attention_macs

    def prefill_macs(self, tokens: int) -> int:
        """Of a prompt, from an empty context, with the logits after its last token."""
        pairs = sum(_pairs(tokens, window) for window in self.windows)
        return tokens * self.matrix_macs + self.head_macs + pairs * self.attention_macs


def _pairs(tokens: int, window: int | None) -> int:
    """Query-key pairs of a causal layer: query t sees t + 1 keys, or the window."""
    seen = tokens if window is None else min(tokens, window)
    return seen * (seen + 1) // 2 + (tokens - seen) * seen


def needs_of(path: Path) -> Needs:
    """The needs of a GGUF file.

    Raises:
      GgufError: If it is no model that attar reads.
    """
    file = read_gguf(path)
    return needs(file, config_from_gguf(file))


def needs(file: GgufFile, config: ModelConfig) -> Needs:
    """The needs of an opened file; see `needs_of`."""
    matrices = {name: tensor for name, tensor in file.tensors.items() if len(tensor.shape) == 2}
    head = matrices.pop(_HEAD, None)
    table = matrices.pop(_TABLE)
    # An untied table gives one row to a token, which is nothing beside the rest.
    head = table if head is None else head
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    return Needs(
        weight_bytes=sum(tensor.size_bytes for tensor in matrices.values()) + head.size_bytes,
        matrix_macs=sum(tensor.num_elements for tensor in matrices.values()),
        head_macs=head.num_elements,
        windows=tuple(config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types),
        kv_values=2 * kv_heads * width,
        attention_macs=2 * heads * width,
    )
