"""SFT: maximum likelihood of the given completions."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Array, Float

from attar.distill.losses import cross_entropy
from attar.distill.methods.method import Labels


@dataclass(frozen=True)
class Sft:
    """Supervised fine-tuning. On completions that a teacher wrote it is sequence-level distillation.

    References:
      Kim and Rush, 2016, "Sequence-Level Knowledge Distillation", arXiv:1606.07947.
    """

    name: str = "sft"
    needs_teacher: bool = False
    on_policy_fraction: float = 0.0

    def loss(
        self,
        student_logits: Float[Array, "B N V"],
        labels: Labels,
        teacher_logits: Float[Array, "B N V"] | None,
    ) -> Float[Array, "B N"]:
        """Negative log-likelihood of each completion token."""
        return cross_entropy(student_logits, labels.tokens)
