"""The calculator's arithmetic, and what is read from and corrected in a chain of steps."""

import operator
import re
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attar.distill.answers import (
    answer_completion,
    answers_correct,
    apply_calculator,
    calculator_value,
    chains_correct,
    final_answer,
    question_prompt,
    read_steps,
)
from attar.distill.calculator import MAX_CHARACTERS, ExpressionError, evaluate, format_number

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
DECIMALS = st.decimals(0, 10_000, places=2).map(str)
RIGHT = "Ann has 2*12 = <<2*12=24>>24 eggs.\nShe keeps 24-3 = <<24-3=21>>21.\n#### 21"
WRONG = "Ann has 2*12 = <<2*12=25>>25 eggs.\nShe keeps 24-3 = <<24-3=22>>22.\n#### 22"


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> tuple[str, Fraction]:
    """A written expression, every operation in parentheses, and its value."""
    if depth == 0 or draw(st.booleans()):
        text = draw(DECIMALS)
        return text, Fraction(text)
    (left, a), (right, b) = draw(expressions(depth - 1)), draw(expressions(depth - 1))
    sign = draw(st.sampled_from("+-*/" if b else "+-*"))
    return f"({left}{sign}{right})", OPERATORS[sign](a, b)


@given(expressions(2))
def test_evaluate_gives_the_exact_value(written: tuple[str, Fraction]) -> None:
    assert evaluate(written[0]) == written[1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1+2*3", "7"),
        ("10-4-3", "3"),
        ("48/4/2", "6"),
        ("-2 * -(3 - 5)", "-4"),
        ("+.5+1.", "1.5"),
        ("80,000 + 1,000.5", "81000.5"),
        ("1/3*3", "1"),
        ("3×4÷2", "6"),
    ],
)
def test_evaluate_follows_precedence(text: str, value: str) -> None:
    assert evaluate(text) == Fraction(value)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "end"),
        ("2+", "end"),
        ("(2", "end"),
        ("2)", "')'"),
        ("2 3", "'3'"),
        ("2**3", "'*'"),
        ("1,00", "','"),
        ("x+1", "'x'"),
        ("__import__('os')", "'_'"),
        ("5/(3-3)", "divides by zero"),
        ("1" * (MAX_CHARACTERS + 1), f"at most {MAX_CHARACTERS}"),
    ],
)
def test_evaluate_refuses_what_is_no_arithmetic(text: str, names: str) -> None:
    with pytest.raises(ExpressionError, match=re.escape(names)):
        evaluate(text)


@given(
    st.text("0123456789+-*/(). ,x", max_size=MAX_CHARACTERS) | st.sampled_from(["(", "-", "1+("]).map(lambda s: s * 40)
)
def test_evaluate_ends_in_a_value_or_its_own_error(text: str) -> None:
    with suppress(ExpressionError):
        assert isinstance(evaluate(text), Fraction)


@given(st.decimals(-(10**9), 10**9, places=4))
def test_a_number_that_ends_is_written_exactly(number: object) -> None:
    value = Fraction(str(number))
    assert evaluate(format_number(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1/3", "0.33"),
        ("-2/3", "-0.67"),
        ("599/300", "2.00"),
        ("-1/900", "0.00"),
        ("72", "72"),
        ("5/2", "2.5"),
        ("0", "0"),
    ],
)
def test_other_numbers_are_rounded(value: str, text: str) -> None:
    assert format_number(Fraction(value)) == text


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("#### 72", "72"),
        ("####72 apples", "72"),
        ("#### $1,234.50", "1234.5"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### −4", "-4"),
        ("#### € 7.", "7"),
        ("#### 50%", "50"),
        ("#### .5", "0.5"),
        ("#### 3/4", "3/4"),
        ("#### 1\n#### 2", "1"),
    ],
)
def test_final_answer(line: str, value: str) -> None:
    assert final_answer(f"Some steps.\n{line}\n") == Fraction(value)


@pytest.mark.parametrize("text", ["", "72", "#### ", "#### none", "#### 1/0", "#### " + "9" * 200])
def test_no_final_answer(text: str) -> None:
    assert final_answer(text) is None


def test_steps_say_whether_they_hold() -> None:
    right, wrong = read_steps(RIGHT), read_steps(WRONG)
    assert [(s.expression, s.value, s.repeated, s.holds) for s in right] == [
        ("2*12", "24", "24", True),
        ("24-3", "21", "21", True),
    ]
    assert [(s.result, s.holds) for s in wrong] == [(24, False), (21, False)]


@pytest.mark.parametrize(
    ("step", "holds"),
    [
        ("<<1/3=0.33>>0.33", True),
        ("<<2/3=0.66>>0.66", False),
        ("<<100/3=33>>33", False),
        ("<<5/2=2.50>>2.50", True),
        ("<<80000+50000=130000>>130,000", True),
        ("<<3/4=3/4>> of them", True),
        ("<<48/2=24>>23", False),
        ("<<24=24>>24.", True),
        ("<<n*2=4>>4", False),
        ("<<1/0=0>>0", False),
    ],
)
def test_a_step_holds_exactly_or_to_the_decimals_it_shows(step: str, holds: bool) -> None:
    assert [found.holds for found in read_steps(step)] == [holds]


@pytest.mark.parametrize(
    ("text", "corrected"),
    [
        (RIGHT, RIGHT),
        (WRONG, RIGHT),
        ("<<2*3=>>", "<<2*3=6>>"),
        ("<<48/2=24>>23 clips", "<<48/2=24>>24 clips"),
        ("<<1000*2=3000>>3,000", "<<1000*2=2000>>2,000"),
        ("<<1/3=0.3333>>0.3333", "<<1/3=0.3333>>0.3333"),
        ("<<1/3=0.5>>0.5", "<<1/3=0.33>>0.33"),
        ("<<n*2=5>>5\n#### 5", "<<n*2=5>>5\n#### 5"),
        ("<<2*2=5>>5\n#### $5 left", "<<2*2=4>>4\n#### $4 left"),
        ("<<2*2=5>>5\n#### 7", "<<2*2=4>>4\n#### 7"),
        ("<<48/2=24>>23\n#### 23", "<<48/2=24>>24\n#### 24"),
        ("<<1/3=0.333>>0.3\n#### 0.3", "<<1/3=0.333>>0.333\n#### 0.333"),
        ("<<2*2=5>>5\n#### 5\n<<1+1=2>>2", "<<2*2=4>>4\n#### 4\n<<1+1=2>>2"),
        ("<<2*2=4>>4\n#### 5\n<<1+1=5>>5", "<<2*2=4>>4\n#### 5\n<<1+1=2>>2"),
        ("no steps\n#### 7", "no steps\n#### 7"),
    ],
)
def test_apply_calculator(text: str, corrected: str) -> None:
    assert apply_calculator(text) == corrected


@given(st.lists(st.tuples(expressions(2), DECIMALS), max_size=4), DECIMALS)
def test_after_the_calculator_every_step_holds(steps: list[tuple[tuple[str, Fraction], str]], answer: str) -> None:
    text = "".join(f"It is <<{written}={value}>>{value} now.\n" for (written, _), value in steps) + f"#### {answer}"
    corrected = apply_calculator(text)
    assert all(step.holds for step in read_steps(corrected))
    assert apply_calculator(corrected) == corrected


@given(st.text("0123456789+-*/=<>#. \n,$", max_size=60))
def test_the_calculator_leaves_any_text_readable(text: str) -> None:
    corrected = apply_calculator(text)
    assert len(read_steps(corrected)) == len(read_steps(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("He pays 4*2.5 = $<<4*2.5=", "10>>"),
        ("<<1/3=", "0.33>>"),
        ("<<1+1=2>> and 3=", None),
        ("<<x=", None),
        ("<<1+1", None),
    ],
)
def test_calculator_value_of_an_open_step(text: str, value: str | None) -> None:
    assert calculator_value(text) == value


def test_correctness_arrays() -> None:
    texts = [RIGHT, WRONG, "#### 21.0", "no answer"]
    assert answers_correct(texts, [RIGHT] * 4).tolist() == [1, 0, 1, 0]
    assert answers_correct(texts, [RIGHT] * 4, calculator=True).tolist() == [1, 1, 1, 0]
    assert answers_correct(["no answer"], ["none here"]).tolist() == [0]
    assert chains_correct([*texts, "<<1+1=2>>2\n#### 3"]).tolist() == [1, 0, 0, 0, 0]


def test_correctness_needs_pairs() -> None:
    with pytest.raises(ValueError, match="one reference per text, got 1 for 2"):
        answers_correct([RIGHT, RIGHT], [RIGHT])


def test_prompt_and_completion_meet_at_one_blank() -> None:
    assert question_prompt(" What is 1+1?\n") + answer_completion("\n2 ") == "Question: What is 1+1?\nAnswer: 2"
