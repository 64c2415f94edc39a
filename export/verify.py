"""Verifies an exported file: reopens it in its real runtime and compares it with the JAX model.

Two questions are kept apart, since a quantised file may answer the first well and the second badly:

1. Does the runtime compute the model that the file's weights describe? Logits of the file in its runtime against
   those of the JAX forward pass on the weights read back from the file (`max_abs_error`, `mean_kl`,
   `greedy_agreement`, `perplexity_ratio`). The prompt is longer than the attention window, and is read in pieces, its
   end token by token, so that the cache is exercised as generation does.
2. Are the file's weights those of the checkpoint, up to the rounding of the format? (`weight_error`; what the rounding
   costs is in `quantization_perplexity_ratio`, which is reported and not judged: it is the format's, not a fault.)
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from attar.engine.checkpoint import load_config, load_params, params_from_tensors, stream_tensors
from attar.engine.config import ModelConfig
from attar.export.errors import ExportError
from attar.export.verify_compare import Float32, VerifiedSession, compare_logits, largest_weight_error, mean_nll
from attar.export.verify_limits import Limits, limits_for
from attar.export.verify_prompts import random_prompt, text_prompt


class VerificationError(ExportError):
    """A file whose runtime does not compute the model it was exported from; it is kept, and marked as failed."""


OpenSession = Callable[[Path], VerifiedSession]


@dataclass(frozen=True)
class VerifyReport:
    """Figures over all positions of all prompts.

    Attributes:
      scheme: Precision that the file was exported with; it sets the limits.
      weight_error: Largest |w - w'| of the checkpoint's weights w and the file's w', relative to the largest |w| of the
        same row.
      max_abs_error: Largest difference of a logit, runtime against JAX on the file's weights.
      mean_kl: Mean KL(JAX ‖ runtime) of the next-token distributions, in nats.
      greedy_agreement: Share of positions with the same most likely token, near-ties apart.
      perplexity_ratio: Perplexity of the prompts in the runtime over that in JAX, both on the file's weights.
      quantization_perplexity_ratio: Perplexity in JAX of the file's weights over that of the checkpoint's.
      limits: What the figures were held against.
    """

    scheme: str
    num_tokens: int
    longest_prompt_tokens: int
    weight_error: float
    max_abs_error: float
    mean_kl: float
    greedy_agreement: float
    perplexity_ratio: float
    quantization_perplexity_ratio: float
    limits: Limits

    @property
    def faults(self) -> tuple[str, ...]:
        """Each limit that is exceeded, in words; empty if the file passed."""
        limits, deviation = self.limits, abs(self.perplexity_ratio - 1)
        # Written so that a figure that is not a number fails.
        checks = [
            ("weight_error", self.weight_error, limits.weight_error, self.weight_error <= limits.weight_error),
            ("mean_kl", self.mean_kl, limits.mean_kl, self.mean_kl <= limits.mean_kl),
            (
                "deviation of perplexity_ratio",
                deviation,
                limits.perplexity_deviation,
                deviation <= limits.perplexity_deviation,
            ),
        ]
        if limits.max_abs_error is not None:
            within = self.max_abs_error <= limits.max_abs_error
            checks.append(("max_abs_error", self.max_abs_error, limits.max_abs_error, within))
        faults = [f"{name} must be at most {limit:.3g}, got {value:.3g}" for name, value, limit, ok in checks if not ok]
        if not self.greedy_agreement >= limits.greedy_agreement:
            faults.append(
                f"greedy_agreement must be at least {limits.greedy_agreement:.3g}, got {self.greedy_agreement:.3g}"
            )
        return tuple(faults)

    @property
    def passed(self) -> bool:
        return not self.faults


def verify_export(
    checkpoint: Path,
    exported: Path,
    scheme: str,
    *,
    open_session: OpenSession,
    prompts: Sequence[Sequence[int]] | None = None,
    limits: Limits | None = None,
) -> VerifyReport:
    """Compares an exported file with its checkpoint and writes the figures beside it, as `NAME.verify.json`.

    Args:
      checkpoint: What the file was exported from.
      exported: The `.gguf` or `.tflite` file, or the folder with `model.onnx`.
      scheme: Precision it was exported with: "fp32", "int8", "int4", or a GGUF scheme's name.
      open_session: Opens the file in its runtime; `attar.runtime.session.open_session` does.
      prompts: Token ids of at least two tokens each; None takes one text that is longer than the window.
      limits: What to allow; None takes the limits of the scheme.

    Raises:
      VerificationError: If a limit is exceeded; the file stays, and its `NAME.verify.json` says so.
      ExportError: If the file cannot be read back.
      CheckpointError: If `checkpoint` is not a model.
    """
    report = _measure(checkpoint, exported, scheme, open_session, prompts, limits or limits_for(scheme))
    write_report(exported, report)
    if not report.passed:
        raise VerificationError(f"{exported}: failed verification: {'; '.join(report.faults)}")
    return report


def stored_tensors(exported: Path, config: ModelConfig) -> dict[str, Float32]:
    """The weights that a file really holds, dequantised: float32 by Hugging Face names.

    Args:
      config: Of the checkpoint that the file was exported from.

    Raises:
      ExportError: If the file is damaged or of no format that attar exports.
    """
    # One branch per format, imported late: each needs that format's own library.
    if exported.suffix == ".gguf":
        from attar.export.gguf_writer import dequantized_tensors

        return dequantized_tensors(exported, config)
    if exported.suffix == ".tflite":
        from attar.export.tflite_reader import stored_tensors as read_tflite

        return read_tflite(exported)
    if exported.suffix == ".onnx" or exported.is_dir():
        from attar.export.onnx_emitter import stored_tensors as read_onnx

        return read_onnx(exported)
    raise ExportError(f"{exported}: no exported model; expected .gguf, .tflite, .onnx or a folder with model.onnx")


def report_path(exported: Path) -> Path:
    """Where the figures of a file are kept."""
    return exported.with_name(exported.name + ".verify.json")


def write_report(exported: Path, report: VerifyReport) -> None:
    """Writes the figures beside the file they are about, whole or not at all."""
    path = report_path(exported)
    figures = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(report).items()
    }
    content = {"passed": report.passed, "faults": report.faults, **figures}
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error}; free space or choose another folder") from None


def default_prompt(checkpoint: Path, config: ModelConfig, limits: Limits, context_length: int) -> list[int]:
    """Text for runtimes that round activations to 8 bits, random ids for those held to closer limits."""
    if limits.judged_on_text:
        return text_prompt(checkpoint, config, context_length)
    return random_prompt(config, context_length)


def _measure(
    checkpoint: Path,
    exported: Path,
    scheme: str,
    open_session: OpenSession,
    prompts: Sequence[Sequence[int]] | None,
    limits: Limits,
) -> VerifyReport:
    config = load_config(checkpoint)
    stored = stored_tensors(exported, config)
    norm_offset = 1.0 if config.norm_plus_one else 0.0
    weight_error = largest_weight_error(stream_tensors(checkpoint, config), stored, norm_offset)
    if math.isinf(weight_error):  # another model: there is nothing to compare it with
        nan = math.nan
        return VerifyReport(scheme, 0, 0, weight_error, nan, nan, nan, nan, nan, limits)
    session = open_session(exported)
    try:
        prompts = prompts or [default_prompt(checkpoint, config, limits, session.context_length)]
        figures = compare_logits(config, params_from_tensors(config, stored), session, prompts)
    finally:
        session.close()
    del stored  # before the checkpoint's own weights are loaded
    original_nll = mean_nll(config, load_params(checkpoint)[1], prompts)
    return VerifyReport(
        scheme=scheme,
        num_tokens=figures.positions,
        longest_prompt_tokens=max(map(len, prompts)),
        weight_error=weight_error,
        max_abs_error=figures.max_abs_error,
        mean_kl=figures.kl / figures.positions,
        greedy_agreement=figures.agreed / figures.positions,
        perplexity_ratio=math.exp(figures.measured_nll - figures.reference_nll),
        quantization_perplexity_ratio=math.exp(figures.reference_nll - original_nll),
        limits=limits,
    )
