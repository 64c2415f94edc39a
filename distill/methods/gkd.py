"""GKD: a divergence to the teacher on the data's completions, on the student's own samples, or on both in turn."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Array, Float, Int

from attar.distill.losses import generalized_jsd


@dataclass(frozen=True)
class Gkd:
    """Generalised knowledge distillation.

    λ = 0 with β = 0 is supervised distillation, λ = 1 with β = 0 on-policy distillation with the forward KL, λ = 1
    with β = 1 on-policy distillation with the reverse KL.

    Attributes:
      on_policy_fraction: λ, the probability that a batch is sampled from the student; drawn once per batch.
      beta: Mixture weight of the generalised JSD; 0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher).
      temperature: Divides both sides' logits inside the divergence (sampling has a temperature of its own).

    References:
      Agarwal et al., 2024, arXiv:2306.13649, algorithm 1 and eq. 1.
    """

    on_policy_fraction: float = 0.5
    beta: float = 0.5
    temperature: float = 1.0
    name: str = "gkd"
    needs_teacher: bool = True

    def __post_init__(self) -> None:
        for field, value in (("lambda", self.on_policy_fraction), ("beta", self.beta)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{field} must be in [0, 1], got {value}")

    def loss(
        self,
        student_logits: Float[Array, "B N V"],
        targets: Int[Array, "B N"],
        teacher_logits: Float[Array, "B N V"] | None,
    ) -> Float[Array, "B N"]:
        """Divergence between teacher and student at each completion position; the targets only set the context."""
        if teacher_logits is None:
            raise ValueError("gkd needs the teacher's logits, got none")
        return generalized_jsd(student_logits, teacher_logits, self.beta, self.temperature)
