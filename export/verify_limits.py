"""What a verified file may deviate by, and why so much."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Largest (or for greedy_agreement smallest) figures of a VerifyReport that pass; None is not judged.

    Attributes:
      weight_error: Of one weight, relative to the largest of its row.
      perplexity_deviation: Of the perplexity ratio from 1.
      judged_on_text: Whether the default prompt is text instead of random ids; see verify_prompts.
    """

    weight_error: float
    max_abs_error: float | None
    mean_kl: float
    greedy_agreement: float
    perplexity_deviation: float
    judged_on_text: bool = False


def _with_float_activations(weight_error: float) -> Limits:
    """For graphs that compute in float32 throughout: only the order of sums differs from JAX."""
    return Limits(weight_error, 2e-3, 1e-5, 0.999, 1e-3)


def _with_rounded_activations(weight_error: float) -> Limits:
    """For onnxruntime and LiteRT with integer weights, which round activations to 8 bits before a product.

    Measured on SmolLM2, which has activations far larger than their neighbours, on English text: onnxruntime KL 0.009,
    5 % of the greedy choices moved; LiteRT KL 0.021, 7 % moved, perplexity off by 2 %.
    """
    return Limits(weight_error, None, 0.05, 0.85, 0.05, judged_on_text=True)


def _with_rounded_cache(weight_error: float) -> Limits:
    """For attar's C runtime, which rounds activations to 16-bit integers and the cache to float16.

    Measured on SmolLM2 Q8_0: KL 8e-7, no greedy choice moved, perplexity off by 0.04 %.
    """
    return Limits(weight_error, None, 1e-3, 0.98, 0.01)


# Largest rounding error of one weight, relative to the largest magnitude m of its block: half a step, and a whole
# step where the code that would be nearest on the side opposite to m does not exist. Rounding the scale to float16
# adds up to 2^-11 of the weight.
_LIMITS: dict[str, Limits] = {
    "fp32": _with_float_activations(1e-6),
    "int8": _with_rounded_activations(1 / 254 + 1e-4),
    "int4": _with_rounded_activations(1 / 8 + 1e-4),
    "F32": _with_rounded_cache(1e-6),
    "F16": _with_rounded_cache(2**-11 + 1e-4),
    "BF16": _with_rounded_cache(2**-8 + 1e-4),
    "Q8_0": _with_rounded_cache(1 / 254 + 1e-3),
    "Q5_0": _with_rounded_cache(1 / 16 + 1e-3),
    "Q4_1": _with_rounded_cache(1 / 15 + 2e-3),
    "Q4_0": _with_rounded_cache(1 / 8 + 1e-3),
}


def limits_for(scheme: str) -> Limits:
    """The limits of a precision by the name it is exported with.

    Raises:
      ValueError: If there is no such precision.
    """
    if scheme not in _LIMITS:
        raise ValueError(f"scheme must be one of {', '.join(_LIMITS)}, got {scheme!r}")
    return _LIMITS[scheme]
