"""Rewards of completions, and how much better than its fellows each one was.

A reward is a function `(prompts, completions, references) -> floats`, one float a completion. Texts are as a reader
sees them: the completion without its end token, the reference as the data has it, "" where the data has none.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from attar.distill.answers import answers_correct
from attar.distill.metrics import rouge


class RewardError(ValueError):
    """A reward that cannot be found, or whose values cannot be used."""


class Reward(Protocol):
    """Scores completions; more is better."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], references: Sequence[str], /
    ) -> NDArray[np.floating[Any]]:
        """One finite float for each completion."""
        ...


def exact_answer(
    prompts: Sequence[str], completions: Sequence[str], references: Sequence[str], /
) -> NDArray[np.float64]:
    """1 where the final answer (`#### 12`) is the reference's number, else 0."""
    return answers_correct(completions, references)


def rouge_l(prompts: Sequence[str], completions: Sequence[str], references: Sequence[str], /) -> NDArray[np.float64]:
    """F-measure of ROUGE-L against the reference, in [0, 1]."""
    return rouge(completions, references)["rougeL"]


BUILT_IN: dict[str, Reward] = {"exact_answer": exact_answer, "rougeL": rouge_l}
"""Rewards by name; each reads the references."""


def find_reward(name: str) -> Reward:
    """A built-in reward, or the function that `module:function` names; modules of the working directory are found.

    Raises:
      RewardError: If there is none of that name.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise RewardError(f"reward must be {', '.join(BUILT_IN)} or module:function, got {name!r}")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # whatever the user's module raises as it is read
        raise RewardError(f"reward {name}: {module} cannot be imported: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise RewardError(f"reward {name}: {module} has no function {function!r}")
    return found  # type: ignore[no-any-return]  # checked where it is called


def score(
    reward: Reward, name: str, prompts: Sequence[str], completions: Sequence[str], references: Sequence[str]
) -> NDArray[np.float64]:
    """The rewards of B completions, [B], checked.

    Raises:
      RewardError: If the reward fails, or does not give one finite float for each completion.
    """
    try:
        values = np.asarray(reward(prompts, completions, references), np.float64)
    except Exception as error:  # the user's function may raise anything
        raise RewardError(f"reward {name} failed: {type(error).__name__}: {error}") from None
    if values.shape != (len(completions),):
        raise RewardError(f"reward {name} must give {len(completions)} floats, one a completion, got {values.shape}")
    if not np.isfinite(values).all():
        worst = int(np.flatnonzero(~np.isfinite(values))[0])
        raise RewardError(f"reward {name} must be finite, got {values[worst]} for {completions[worst]!r}")
    return values


def leave_one_out(rewards: NDArray[np.float64], samples_per_prompt: int) -> NDArray[np.float64]:
    """Each reward less the mean of the others: of the same prompt, or of the batch where a prompt has one sample.

    The baseline does not depend on the completion itself, so that the gradient stays unbiased.

    Args:
      rewards: [B], the samples of a prompt after one another; B is at least 2 and a multiple of `samples_per_prompt`.

    Returns:
      [B].

    References:
      Kool et al., 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!", ICLR workshop; Ahmadian et al., 2024,
      arXiv:2402.14740, section 2.2.
    """
    size = samples_per_prompt if samples_per_prompt > 1 else len(rewards)
    groups = rewards.reshape(-1, size)  # [B / size, size]
    advantages: NDArray[np.float64] = (groups - groups.mean(axis=1, keepdims=True)) * size / (size - 1)
    return advantages.reshape(-1)
