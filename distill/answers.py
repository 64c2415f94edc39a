"""Word problems with a checkable answer, in the form that GSM8K published.

    Question: Ann has 2 crates of 12 eggs. She breaks 3. How many are whole?       prompt
    Answer:
     Ann has 2*12 = <<2*12=24>>24 eggs.                                            completion, one step a line
    24-3 = <<24-3=21>>21 are whole.
    #### 21                                                                        final answer

References:
  Cobbe et al., 2021, arXiv:2110.14168, "Training Verifiers to Solve Math Word Problems": the annotation, and the
  calculator that fills in what follows `<<expression=`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from attar.distill.calculator import ExpressionError, evaluate, format_number

_NUMBER = r"(?>-?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+))"  # atomic: all of the number or nothing
_FINAL = re.compile(r"####([^\n]*)")
_FINAL_NUMBER = re.compile(rf"(?P<minus>[-−]?)[^\w\s.\-−]?\s*(?P<number>{_NUMBER}(?:/\d+)?)")
_STEP = re.compile(rf"<<(?P<expression>[^<>=\n]+)=(?P<value>[^<>=\n]*)>>(?P<repeated>{_NUMBER}(?!/\d))?")
_OPEN_STEP = re.compile(r"<<([^<>=\n]+)=$")


def question_prompt(question: str) -> str:
    """The prompt that asks a word problem."""
    return f"Question: {question.strip()}\nAnswer:"


def answer_completion(answer: str) -> str:
    """The completion that answers `question_prompt`: it starts with the blank that the prompt leaves out."""
    return f" {answer.strip()}"


@dataclass(frozen=True)
class Step:
    """One annotation `<<expression=value>>` of a chain.

    Attributes:
      expression: As written.
      value: As written.
      result: What the expression is, None where it is no arithmetic.
      repeated: The number written directly after the annotation, "" if none.
      holds: Whether the value is the result, exactly or rounded to the decimals it shows, and is repeated as it is.
    """

    expression: str
    value: str
    result: Fraction | None
    repeated: str
    holds: bool


def final_answer(text: str) -> Fraction | None:
    """The number after the first `####`, commas, currency and units aside; None where there is none.

    The first one counts: what a model writes after its answer is not part of it.
    """
    line = _FINAL.search(text)
    match = _FINAL_NUMBER.match(line[1].strip()) if line else None
    value = evaluate_number(match["number"]) if match else None
    return -value if match and value is not None and match["minus"] else value


def evaluate_number(text: str) -> Fraction | None:
    """The value of a number or expression, None where it has none."""
    try:
        return evaluate(text)
    except ExpressionError:
        return None


def read_steps(text: str) -> tuple[Step, ...]:
    """The annotations of a chain in their order, each with whether it holds."""
    return tuple(_step(match) for match in _STEP.finditer(text))


def _step(match: re.Match[str]) -> Step:
    result, repeated = evaluate_number(match["expression"]), match["repeated"] or ""
    holds = _is_shown_by(result, match["value"]) and (not repeated or _same_number(repeated, match["value"]))
    return Step(match["expression"], match["value"], result, repeated, holds)


def _is_shown_by(result: Fraction | None, value: str) -> bool:
    """Whether `value` writes `result`: equal, or within half a unit of the last decimal that it shows."""
    shown = evaluate_number(value)
    if result is None or shown is None:
        return False
    decimals = len(value.partition(".")[2].strip())
    return result == shown or (decimals > 0 and abs(result - shown) <= Fraction(1, 2 * 10**decimals))


def _same_number(text: str, other: str) -> bool:
    value = evaluate_number(text)
    return value is not None and value == evaluate_number(other)


def apply_calculator(text: str) -> str:
    """Puts the value that a calculator gives into each `<<expression=value>>` and the number repeated after it.

    A final answer that repeats the last step's value follows it. What holds is left as it is, and so is what is no
    arithmetic. Later expressions keep the numbers the text wrote: only a calculator at work while the text is sampled
    (`calculator_value`) lets a model read what it filled in.
    """
    corrected = _STEP.sub(_correct_step, text)
    steps = read_steps(text.partition("####")[0])
    if not steps or steps[-1].holds:
        return corrected
    return _FINAL.sub(lambda match: _correct_final(match, steps[-1]), corrected, count=1)


def _correct_step(match: re.Match[str]) -> str:
    step = _step(match)
    if step.holds or step.result is None:
        return match[0]
    value = _correct_value(step, step.result)
    return f"<<{step.expression}={value}>>{_like(step.repeated, value) if step.repeated else ''}"


def _correct_value(step: Step, result: Fraction) -> str:
    """The value as written where it is right, else the result."""
    return step.value if _is_shown_by(result, step.value) else format_number(result)


def _correct_final(match: re.Match[str], last: Step) -> str:
    number = re.search(_NUMBER, match[1])
    if last.result is None or number is None:
        return match[0]
    if not any(_same_number(number[0], written) for written in (last.value, last.repeated)):
        return match[0]
    return "####" + match[1].replace(number[0], _like(number[0], _correct_value(last, last.result)), 1)


def _like(old: str, value: str) -> str:
    """`value` with commas between thousands where `old` had them."""
    if "," not in old:
        return value
    whole, point, decimals = value.partition(".")
    return f"{int(whole):,}{point}{decimals}"


def calculator_value(text: str) -> str | None:
    """What a calculator writes where a sampled text ends in `<<expression=`: the value and `>>`; None elsewhere."""
    match = _OPEN_STEP.search(text)
    result = evaluate_number(match[1]) if match else None
    return None if result is None else f"{format_number(result)}>>"


def first_wrong_value(text: str, start: int) -> tuple[int, str] | None:
    """Where a calculator would have written something else: the first annotation at or after `start` whose value is not
    its expression's; annotations without a value that can be worked out are left alone.

    Returns:
      Characters up to the value, and what the calculator writes there (`calculator_value`); None if all is right.
    """
    for match in _STEP.finditer(text, start):
        given = calculator_value(text[: match.start("value")])
        if given is not None and not _is_shown_by(evaluate_number(match["expression"]), match["value"]):
            return match.start("value"), given
    return None


def answers_correct(
    predictions: Sequence[str], references: Sequence[str], *, calculator: bool = False
) -> NDArray[np.float64]:
    """1 where a completion's final answer is the reference's number, else 0; [len(predictions)].

    Args:
      predictions: Completions.
      references: Completions with a final answer; one without is matched by nothing.
      calculator: Corrects the predictions by `apply_calculator` first.

    Raises:
      ValueError: If the two sequences differ in length.
    """
    if len(predictions) != len(references):
        raise ValueError(f"there must be one reference per text, got {len(references)} for {len(predictions)}")
    given = (final_answer(apply_calculator(text) if calculator else text) for text in predictions)
    right = (final_answer(text) for text in references)
    return np.array([float(a is not None and a == b) for a, b in zip(given, right, strict=True)], np.float64)


def chains_correct(predictions: Sequence[str]) -> NDArray[np.float64]:
    """1 where a completion has steps, all of them hold and the last one's value is its final answer; [len]."""
    return np.array([float(_chain_holds(text)) for text in predictions], np.float64)


def _chain_holds(text: str) -> bool:
    steps = read_steps(text.partition("####")[0])
    if not steps or not all(step.holds for step in steps):
        return False
    return final_answer(text) == evaluate_number(steps[-1].value)
