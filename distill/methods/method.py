"""Method: what a training method says about a batch, and nothing about loops, files or devices."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from jaxtyping import Array, Float, Int

from attar.distill.policy_gradient import PolicyLabels
from attar.distill.stored_targets import DrawnTargets, TopTargets

MethodName = Literal["sft", "pretrain", "gkd", "uld"]


class Labels(NamedTuple):
    """What a loss may read at each completion position besides logits; a pytree of arrays [B, N, ...].

    Attributes:
      tokens: The completion tokens.
      stored: What was kept of the teacher's distribution; None where the teacher itself is at hand, or not needed.
      policy: Of rewarded samples; None elsewhere.
    """

    tokens: Int[Array, "B N"]
    stored: TopTargets | DrawnTargets | None = None
    policy: PolicyLabels | None = None


class Method(Protocol):
    """A loss per completion token.

    Attributes:
      name: Short name for logs and configuration files.
      needs_teacher: Whether `loss` reads the teacher's logits.
      on_policy_fraction: Probability that a batch is sampled from the student instead of read from the data (λ).
    """

    @property
    def name(self) -> str: ...
    @property
    def needs_teacher(self) -> bool: ...
    @property
    def on_policy_fraction(self) -> float: ...

    def loss(
        self,
        student_logits: Float[Array, "B N V"],
        labels: Labels,
        teacher_logits: Float[Array, "B N V"] | None,
    ) -> Float[Array, "B N"]:
        """Per-token values in nats for the N completion positions; the caller masks, weighs and sums them.

        Args:
          student_logits: Logits that predict each completion token.
          labels: The completion tokens, and what is stored with them.
          teacher_logits: The teacher's logits at the same positions; None where `needs_teacher` is false.
        """
        ...
