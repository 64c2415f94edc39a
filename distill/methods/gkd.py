"""GKD: a divergence to the teacher on the data's completions, on the student's own samples, or on both in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import get_args

from jaxtyping import Array, Float

from attar.distill.divergences import (
    DivergenceName,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    total_variation,
)
from attar.distill.methods.method import Labels
from attar.distill.policy_gradient import policy_loss
from attar.distill.stored_targets import stored_forward_kl


@dataclass(frozen=True)
class Gkd:
    """Generalised knowledge distillation.

    λ = 0 with the forward KL is supervised distillation, λ = 1 with it on-policy distillation.

    Attributes:
      on_policy_fraction: λ, the probability that a batch is sampled from the student; drawn once per batch.
      divergence: Which one; see `divergences`.
      beta: Of `jsd`: mixture weight of the teacher; 0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher).
      skew: α of `skew_kl` and `skew_reverse_kl`.
      temperature: Divides the student's logits inside the divergence (sampling has a temperature of its own).
      teacher_temperature: Divides the teacher's; None is `temperature`. Of stored targets it was applied before.
      divergence_share: α, the weight of the divergence; 1 - α is that of the reward, on rewarded samples alone.
      needs_teacher: False where the labels hold a part of its distribution, which tells the forward KL alone.

    References:
      Agarwal et al., 2024, arXiv:2306.13649, algorithm 1 and eq. 1.
    """

    on_policy_fraction: float = 0.5
    divergence: DivergenceName = "jsd"
    beta: float = 0.5
    skew: float = 0.1
    temperature: float = 1.0
    teacher_temperature: float | None = None
    divergence_share: float = 1.0
    name: str = "gkd"
    needs_teacher: bool = True

    def __post_init__(self) -> None:
        if self.divergence not in get_args(DivergenceName):
            allowed = ", ".join(get_args(DivergenceName))
            raise ValueError(f"divergence must be one of {allowed}, got {self.divergence!r}")
        for field, value in (
            ("lambda", self.on_policy_fraction),
            ("beta", self.beta),
            ("alpha", self.divergence_share),
        ):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{field} must be in [0, 1], got {value}")
        if not 0.0 <= self.skew < 1.0:
            raise ValueError(f"skew must be in [0, 1), got {self.skew}")

    def loss(
        self,
        student_logits: Float[Array, "B N V"],
        labels: Labels,
        teacher_logits: Float[Array, "B N V"] | None,
    ) -> Float[Array, "B N"]:
        """α times the divergence between teacher and student, and 1 - α times the policy's loss where there is one.

        Its gradient maximises (1 - α) E[reward] - α D, section 3.2 of the paper; the divergence alone reads no tokens.
        """
        divergence = self._divergence(student_logits, labels, teacher_logits)
        if self.divergence_share == 1.0:
            return divergence
        if labels.policy is None:
            return self.divergence_share * divergence
        reward = policy_loss(student_logits, labels.tokens, labels.policy)
        return self.divergence_share * divergence + (1.0 - self.divergence_share) * reward

    def _divergence(
        self, student_logits: Float[Array, "B N V"], labels: Labels, teacher_logits: Float[Array, "B N V"] | None
    ) -> Float[Array, "B N"]:
        if labels.stored is not None:
            return stored_forward_kl(student_logits / self.temperature, labels.stored)
        if teacher_logits is None:
            raise ValueError("gkd needs the teacher's logits, got none")
        divergences: dict[DivergenceName, Callable[..., Array]] = {
            "jsd": partial(generalized_jsd, beta=self.beta),
            "forward_kl": forward_kl,
            "reverse_kl": reverse_kl,
            "skew_kl": partial(skew_kl, skew=self.skew),
            "skew_reverse_kl": partial(skew_reverse_kl, skew=self.skew),
            "total_variation": total_variation,
        }
        return divergences[self.divergence](
            student_logits,
            teacher_logits,
            temperature=self.temperature,
            teacher_temperature=self.teacher_temperature,
        )
