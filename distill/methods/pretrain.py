"""Pre-training distillation: next-token prediction with the teacher's distribution in the place of the next token."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Array, Float

from attar.distill.losses import teacher_cross_entropy
from attar.distill.methods.method import Labels
from attar.distill.stored_targets import stored_cross_entropy


@dataclass(frozen=True)
class Pretrain:
    """-Σ P log Q at every position, with the teacher's P; the one-hot loss that it replaces is `Sft`'s.

    The texts are the data's, never the student's, and no temperature is applied to either side.

    Attributes:
      needs_teacher: False where the labels hold what was stored of the teacher.

    References:
      Gemma Team, 2024, arXiv:2408.00118, section 3.2.
    """

    name: str = "pretrain"
    needs_teacher: bool = True
    on_policy_fraction: float = 0.0

    def loss(
        self,
        student_logits: Float[Array, "B N V"],
        labels: Labels,
        teacher_logits: Float[Array, "B N V"] | None,
    ) -> Float[Array, "B N"]:
        """Cross-entropy between teacher and student; of stored targets their estimate of it."""
        if labels.stored is not None:
            return stored_cross_entropy(student_logits, labels.stored)
        if teacher_logits is None:
            raise ValueError("pretrain needs the teacher's logits or stored targets, got neither")
        return teacher_cross_entropy(student_logits, teacher_logits)
