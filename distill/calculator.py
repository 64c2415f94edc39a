"""Evaluates written arithmetic exactly: numbers, + - * /, parentheses. Nothing is executed as code.

sum      = product  { ("+" | "-") product }
product  = signed   { ("*" | "/") signed }
signed   = [ "+" | "-" ] signed | number | "(" sum ")"
number   = digits, with commas between thousands and decimals after a point
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_CHARACTERS = 128  # bounds the depth of parentheses and, since nothing raises to a power, the digits of a value
_TOKEN = re.compile(r"\s*(?:(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d*)?|\.\d+)|(?P<sign>[-+*/()×÷]))")
_PLAIN_SIGNS = {"×": "*", "÷": "/"}


class ExpressionError(ValueError):
    """Text that is not arithmetic, or has no value."""


def evaluate(expression: str) -> Fraction:
    """The exact value of a written expression; currency signs are not part of it.

    Raises:
      ExpressionError: If the text is longer than `MAX_CHARACTERS`, is no expression, or divides by zero.
    """
    if len(expression) > MAX_CHARACTERS:
        raise ExpressionError(f"an expression must have at most {MAX_CHARACTERS} characters, got {len(expression)}")
    return _Parser(_tokens(expression.rstrip()), expression).parse()


def format_number(value: Fraction, decimals: int = 2) -> str:
    """The number in decimal digits: exact where it ends within twelve decimals, else with `decimals` of them."""
    if (value * 10**12).denominator == 1:
        whole, _, part = _rounded(value, 12).partition(".")
        return whole + f".{part}".rstrip("0").rstrip(".")
    return _rounded(value, decimals)


def _rounded(value: Fraction, decimals: int) -> str:
    """The number with that many decimals, at least one; halves go away from zero."""
    units = int(abs(value) * 10**decimals + Fraction(1, 2))
    digits = str(units).zfill(decimals + 1)
    return f"{'-' if value < 0 and units else ''}{digits[:-decimals]}.{digits[-decimals:]}"


def _tokens(text: str) -> list[str]:
    found, place = [], 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ExpressionError(f"{text!r} is not arithmetic: unexpected {text[place:].lstrip()[:1]!r}")
        token = match[match.lastgroup or 0]
        found.append(_PLAIN_SIGNS.get(token, token))
        place = match.end()
    return found


class _Parser:
    """Recursive descent over the grammar above; depth is bounded by the length of the text."""

    def __init__(self, tokens: list[str], text: str) -> None:
        self._tokens = tokens
        self._next = 0
        self._text = text

    def parse(self) -> Fraction:
        value = self._sum()
        if self._take():
            raise self._error()
        return value

    def _sum(self) -> Fraction:
        value = self._product()
        while self._peek() in ("+", "-"):
            value = value + self._product() if self._take() == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while self._peek() in ("*", "/"):
            value = value * self._signed() if self._take() == "*" else self._divide(value, self._signed())
        return value

    def _signed(self) -> Fraction:
        token = self._take()
        if token in ("+", "-"):
            return -self._signed() if token == "-" else self._signed()
        if token == "(":
            value = self._sum()
            if self._take() != ")":
                raise self._error()
            return value
        if token[:1].isdigit() or token[:1] == ".":
            return Fraction(token.replace(",", "").rstrip("."))
        raise self._error()

    def _divide(self, value: Fraction, by: Fraction) -> Fraction:
        if by == 0:
            raise ExpressionError(f"{self._text!r} divides by zero")
        return value / by

    def _peek(self) -> str:
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._next += 1
        return token

    def _error(self) -> ExpressionError:
        seen = self._tokens[self._next - 1 : self._next]
        return ExpressionError(f"{self._text!r} is not arithmetic: unexpected {seen[0] if seen else 'end'!r}")
