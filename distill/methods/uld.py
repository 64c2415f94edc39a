"""Distillation from a teacher of another vocabulary: shared tokens one by one, others by sorted probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attar.distill.alignment import SharedTokens
from attar.distill.methods.gkd import Gkd
from attar.distill.methods.method import Labels


@dataclass(frozen=True)
class Uld:
    """Universal Logit Distillation, with the tokens that both vocabularies hold matched exactly.

    The distributions are compared where both tokenisations of the text have a boundary (`alignment`). With S shared
    tokens the loss is GKD's divergence over S + 1 outcomes, the last being all other tokens together, and
    Σ |sorted P - sorted Q| over the others, the optimal transport between two vocabularies of which nothing is known.
    Where one vocabulary holds no others, the shared tokens alone are compared, each side renormalised over them. Of
    equal vocabularies it is GKD.

    Attributes:
      gkd: Divergence over the shared tokens, and λ; its temperatures divide all logits.
      shared: The two vocabularies; None until the models are known.

    References:
      Boizard et al., 2024, arXiv:2402.12030, for the sorted probabilities; Patiño et al., 2025, "Unlocking On-Policy
      Distillation for Any Model Family", Hugging Face, for matching shared tokens exactly, on-policy too.
    """

    gkd: Gkd = field(default_factory=Gkd)
    shared: SharedTokens | None = None
    name: str = "uld"
    needs_teacher: bool = True

    @property
    def on_policy_fraction(self) -> float:
        return self.gkd.on_policy_fraction

    def loss(
        self,
        student_logits: Float[Array, "B N V"],
        labels: Labels,
        teacher_logits: Float[Array, "B N W"] | None,
    ) -> Float[Array, "B N"]:
        """The loss at each position, whose teacher logits are those of the aligned position."""
        if teacher_logits is None or self.shared is None:
            raise ValueError("uld needs the teacher's logits and the tokens that both vocabularies share, got neither")
        shared = self.shared
        student = student_logits.astype(jnp.float32)
        teacher = jax.lax.stop_gradient(teacher_logits).astype(jnp.float32)
        ours, theirs = student[..., shared.student], teacher[..., shared.teacher]  # [B, N, S]
        if not (len(shared.student_others) and len(shared.teacher_others)):
            return self.gkd.loss(ours, labels, theirs)
        temperature = self.gkd.temperature
        cold = temperature if self.gkd.teacher_temperature is None else self.gkd.teacher_temperature
        our_others, their_others = student[..., shared.student_others], teacher[..., shared.teacher_others]
        matched = self.gkd.loss(
            _with_rest(ours, our_others, temperature), labels, _with_rest(theirs, their_others, cold)
        )
        return matched + _sorted_distance(
            _probabilities(student, our_others, temperature), _probabilities(teacher, their_others, cold)
        )


def _with_rest(
    shared: Float[Array, "B N S"], others: Float[Array, "B N R"], temperature: float
) -> Float[Array, "B N S+1"]:
    """Logits of the shared tokens and of all others together, such that dividing by the temperature is right."""
    rest = temperature * jax.nn.logsumexp(others / temperature, axis=-1, keepdims=True)
    return jnp.concatenate([shared, rest], axis=-1)


def _probabilities(
    logits: Float[Array, "B N V"], others: Float[Array, "B N R"], temperature: float
) -> Float[Array, "B N R"]:
    return jnp.exp(others / temperature - jax.nn.logsumexp(logits / temperature, axis=-1, keepdims=True))


def _sorted_distance(student: Float[Array, "B N R"], teacher: Float[Array, "B N Q"]) -> Float[Array, "B N"]:
    """Σ |sorted - sorted|, falling, the shorter one filled with zeros."""
    length = max(student.shape[-1], teacher.shape[-1])
    falling = [jnp.pad(-jnp.sort(-x, axis=-1), ((0, 0), (0, 0), (0, length - x.shape[-1]))) for x in (student, teacher)]
    return jnp.sum(jnp.abs(falling[0] - falling[1]), axis=-1)
