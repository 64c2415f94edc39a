"""What a verified file may deviate by, and why so much."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Largest (or for greedy_agreement smallest) figures of a VerifyReport that pass; None is not judged.

    Attributes:
      weight_error: Of one weight, relative to the largest of its row.
      perplexity_deviation: Of the perplexity ratio from 1.
    """

    weight_error: float
    max_abs_error: float | None
    mean_kl: float
    greedy_agreement: float
    perplexity_deviation: float


def _with_float_activations(weight_error: float) -> Limits:
    """For graphs that compute in float32 throughout: only the order of sums differs from JAX."""
    return Limits(weight_error, 2e-3, 1e-5, 0.999, 1e-3)


def _with_rounded_activations(weight_error: float) -> Limits:
    """For runtimes that round activations to 8 bits before a product, or the cache to 16.

    Measured on SmolLM2 with 8-bit activations in onnxruntime: KL 0.007 to 0.012, 2 to 9 % of the greedy choices moved
    (most on random ids, where many are equally likely), perplexity off by up to 2.3 %.
    """
    return Limits(weight_error, None, 0.03, 0.85, 0.05)


# Largest rounding error of one weight, relative to the largest magnitude m of its block: half a step, and a whole
# step where the code that would be nearest on the side opposite to m does not exist. Rounding the scale to float16
# adds up to 2^-11 of the weight.
_LIMITS: dict[str, Limits] = {
    "fp32": _with_float_activations(1e-6),
    "int8": _with_rounded_activations(1 / 254 + 1e-4),
    "int4": _with_rounded_activations(1 / 8 + 1e-4),
    "F32": _with_rounded_activations(1e-6),
    "F16": _with_rounded_activations(2**-11 + 1e-4),
    "BF16": _with_rounded_activations(2**-8 + 1e-4),
    "Q8_0": _with_rounded_activations(1 / 254 + 1e-3),
    "Q5_0": _with_rounded_activations(1 / 16 + 1e-3),
    "Q4_1": _with_rounded_activations(1 / 15 + 2e-3),
    "Q4_0": _with_rounded_activations(1 / 8 + 1e-3),
}


def limits_for(scheme: str) -> Limits:
    """The limits of a precision by the name it is exported with.

    Raises:
      ValueError: If there is no such precision.
    """
    if scheme not in _LIMITS:
        raise ValueError(f"scheme must be one of {', '.join(_LIMITS)}, got {scheme!r}")
    return _LIMITS[scheme]
