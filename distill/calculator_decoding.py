"""Answers as a model gives them with a calculator at hand, which writes the value of every `<<expression=`.

A greedy answer is fixed by what stands before it, so the calculator need not watch every token: an answer is read after
the fact, and from the first value that is not its expression's it is written anew, behind the right value. That gives
the text that a calculator would have given on the way, and only wrong values cost another pass.

References:
  Cobbe et al., 2021, arXiv:2110.14168, section 4.1, for the calculator in sampling; Agarwal et al., 2024,
  arXiv:2306.13649, section 4.2, for scoring distilled students with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attar.distill.answers import first_wrong_value

Continue = Callable[[Sequence[int], Sequence[str]], Sequence[str]]
"""(indices of the answers, how each begins) -> what the model writes after that, greedily."""


def answer_with_calculator(answers: Sequence[str], continue_answers: Continue) -> list[str]:
    """The answers with every value that the calculator has set right, and what follows from it.

    Args:
      answers: Greedy answers, blanks at their ends included.
      continue_answers: Goes on from a beginning.
    """
    current = list(answers)
    checked = [0] * len(current)  # characters that the calculator has passed
    while True:
        found = {i: wrong for i, text in enumerate(current) if (wrong := first_wrong_value(text, checked[i]))}
        if not found:
            return current
        begun = [current[i][:end] + value for i, (end, value) in found.items()]
        continued = continue_answers(list(found), begun)
        for i, beginning, rest in zip(found, begun, continued, strict=True):
            current[i], checked[i] = beginning + rest, len(beginning)
