"""Which tensor gets which type: a scheme, and the plan that it makes for the tensors of one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from attar.engine.gguf_blocks import FORMATS

# What a row that the blocks do not divide is stored as instead.
FALLBACK_TYPE = "F16"

_TABLES = ("model.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class Scheme:
    """Types by the role of a tensor, in GGUF's spelling. Norms are always F32.

    Attributes:
      name: How the scheme is asked for.
      weights: Type of the projections.
      embedding: Type of the token table and of the head, which are one tensor where the head is tied.
    """

    name: str
    weights: str
    embedding: str


# Four- and five-bit schemes keep the table at eight bits: tied, it is also the head, and rounding it to four
# costs more perplexity than rounding all other weights of a small model together would save in bytes.
SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("F32", "F32", "F32"),
        Scheme("F16", "F16", "F16"),
        Scheme("BF16", "BF16", "BF16"),
        Scheme("Q8_0", "Q8_0", "Q8_0"),
        Scheme("Q5_0", "Q5_0", "Q8_0"),
        Scheme("Q4_1", "Q4_1", "Q8_0"),
        Scheme("Q4_0", "Q4_0", "Q8_0"),
    )
}


@dataclass(frozen=True)
class Assignment:
    """The type of one tensor.

    Attributes:
      name: Hugging Face name.
      shape: As in Hugging Face, [out, in].
      fallback: Why the tensor did not get the scheme's type; None if it did.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    fallback: str | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the stored tensor."""
        rows = 1
        for size in self.shape[:-1]:
            rows *= size
        return rows * FORMATS[self.type_name].row_bytes(self.shape[-1])


def make_scheme(name: str, embedding: str | None = None) -> Scheme:
    """A scheme by name, with another type for the token table and head if one is given.

    Raises:
      ValueError: If a name is unknown.
    """
    if name not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {name!r}")
    if embedding is None:
        return SCHEMES[name]
    if embedding not in SCHEMES:
        raise ValueError(f"embedding type must be one of {', '.join(SCHEMES)}, got {embedding!r}")
    return replace(SCHEMES[name], embedding=embedding)


def assign_types(shapes: Mapping[str, tuple[int, ...]], scheme: Scheme) -> dict[str, Assignment]:
    """The type of each tensor under a scheme.

    Args:
      shapes: Hugging Face names to shapes, as `engine.gguf_names.hf_shapes` gives them.

    Returns:
      Assignments by name, in the order of `shapes`.
    """
    return {name: _assign(name, shape, scheme) for name, shape in shapes.items()}


def _assign(name: str, shape: tuple[int, ...], scheme: Scheme) -> Assignment:
    if len(shape) < 2:
        return Assignment(name, shape, "F32")
    wanted = FORMATS[scheme.embedding if name in _TABLES else scheme.weights]
    if shape[-1] % wanted.block_cols == 0:
        return Assignment(name, shape, wanted.name)
    reason = f"rows of {shape[-1]} are not a multiple of {wanted.name}'s block of {wanted.block_cols}"
    return Assignment(name, shape, FALLBACK_TYPE, reason)
