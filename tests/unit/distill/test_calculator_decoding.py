"""Answers with a calculator at hand, against a model that is a table: what it writes is fixed by what stands before."""

from collections.abc import Sequence

import pytest

from attar.distill.calculator_decoding import answer_with_calculator


class Scripted:
    """Writes the rest of the first script that agrees with what stands there; counts what it was asked."""

    def __init__(self, *scripts: str) -> None:
        self.scripts = scripts
        self.asked: list[tuple[tuple[int, ...], tuple[str, ...]]] = []

    def __call__(self, indices: Sequence[int], begun: Sequence[str]) -> list[str]:
        self.asked.append((tuple(indices), tuple(begun)))
        return [next(s[len(text) :] for s in self.scripts if s.startswith(text)) for text in begun]


def test_right_values_cost_nothing() -> None:
    text = " a <<2*3=6>>6, <<1/3=0.33>>0.33, <<two+1=9>>9\n#### 6"
    model = Scripted()
    assert answer_with_calculator([text, "", "no chain"], model) == [text, "", "no chain"]
    assert model.asked == []


def test_what_follows_a_wrong_value_is_written_anew() -> None:
    wrong, right = "x <<2*3=7>>7 <<7+1=8>>8\n#### 8", "x <<2*3=6>>6 <<6+1=8>>8\n#### 8"
    corrected = "x <<2*3=6>>6 <<6+1=7>>7\n#### 7"
    model = Scripted(right, corrected)
    assert answer_with_calculator(["fine", wrong], model) == ["fine", corrected]
    assert model.asked == [((1,), ("x <<2*3=6>>",)), ((1,), ("x <<2*3=6>>6 <<6+1=7>>",))]


@pytest.mark.parametrize("text", ["<<2*3=", "<<2*3=7", "<<1/0=4>>4", "<<=4>>", "2*3=7"])
def test_what_no_calculator_would_fill_is_left(text: str) -> None:
    assert answer_with_calculator([text], Scripted()) == [text]


def test_a_model_that_always_errs_comes_to_an_end() -> None:
    def err(indices: Sequence[int], begun: Sequence[str]) -> list[str]:
        return ["<<1+1=3>>" if len(text) < 60 else "" for text in begun]

    (answer,) = answer_with_calculator(["<<1+1=3>>"], err)
    assert answer == "<<1+1=2>>" * (len(answer) // 9)
