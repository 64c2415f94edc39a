"""A word problem as it is told: each event adds a fact to the question and one step to the chain of the answer."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from attar.distill.answers import answer_completion, question_prompt
from attar.distill.calculator import evaluate
from attar.distill.recipes._output import Row

_SMALLEST, _LARGEST = 2, 20_000
_WOMEN = """Ada Amina Bea Carla Chen Dana Elif Emma Freya Grace Hana Ines Jana Kira Leila Maya Nadia Olga Priya Rosa
    Sofia Tess Uma Vera Wanda Yara Zoe""".split()
_MEN = """Adam Amir Ben Carlos Dario Emil Felix Goran Hugo Ivan Jonas Karim Leo Marco Nils Omar Pavel Ravi Samir Tom
    Uwe Viktor Walid Yusuf Zane""".split()


class Misfit(Exception):  # noqa: N818  a draw to be repeated, not a fault
    """The numbers drawn make no sensible problem; another draw may."""


@dataclass(frozen=True)
class Schema:
    """A kind of story.

    Attributes:
      name: What it is about.
      open: Tells the first events and says which others may follow.
    """

    name: str
    open: Callable[[Story], None]


@dataclass(frozen=True)
class Problem:
    """A finished word problem.

    Attributes:
      schema: Name of its kind.
      question: What is told and asked.
      answer: The chain, one step a line, and the final answer, in GSM8K's form.
      value: The final answer.
      chain: The expressions of the steps, which tell problems of one kind apart whatever names they use.
    """

    schema: str
    question: str
    answer: str
    value: int
    chain: tuple[str, ...]

    def to_example(self) -> Row:
        """The JSONL row that `attar distill` reads."""
        return {
            "prompt": question_prompt(self.question),
            "completion": answer_completion(self.answer),
            "schema": self.schema,
            "steps": len(self.chain),
        }


@dataclass(frozen=True)
class _Beat:
    fact: str
    ask: str
    step: str
    expression: str
    value: int


class Story:
    """Who the story is about, what it has come to, and what may happen next.

    Attributes:
      name: The main person's; `he`, `his`, `He` and `His` are the pronouns that go with it.
      things: What the last value counts.
      value: The last step's result.
      events: What may happen next; each is told at most once.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        woman = rng.random() < 0.5
        self.name = rng.choice(_WOMEN if woman else _MEN)
        self.he, self.his = ("she", "her") if woman else ("he", "his")
        self.He, self.His = self.he.capitalize(), self.his.capitalize()
        self.things = ""
        self.value = 0
        self.events: tuple[Callable[[Story], None], ...] = ()
        self._told: list[Callable[[Story], None]] = []
        self._beats: list[_Beat] = []

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        if low > high:
            raise Misfit
        return self._rng.randint(low, high)

    def pick(self, *options: str) -> str:
        """One of the texts."""
        return self._rng.choice(options)

    def part(self) -> int:
        """A number of things that leaves some of them."""
        return self.between(2, min(self.value - 2, 60))

    def divisor(self, low: int = 2, high: int = 12) -> int:
        """A number that divides the value."""
        fitting = [k for k in range(low, min(high, self.value // 2) + 1) if self.value % k == 0]
        if not fitting:
            raise Misfit
        return self._rng.choice(fitting)

    def fraction(self) -> str:
        """A fraction such as 2/3 of which the value makes a whole number."""
        fitting = [(a, b) for b in (2, 3, 4, 5, 8) for a in range(1, b) if self.value % b == 0 and _is_lowest(a, b)]
        if not fitting:
            raise Misfit
        return "{}/{}".format(*self._rng.choice(fitting))

    def percent(self, *options: int) -> int:
        """One of the percentages of which the value makes a whole number."""
        fitting = [p for p in options if self.value * p % 100 == 0]
        if not fitting:
            raise Misfit
        return self._rng.choice(fitting)

    def later(self) -> str:
        """Words that begin a sentence and let time pass."""
        return self.pick("Then", "Later", "After that", "The next day,", "A week later,")

    def soon(self) -> str:
        """The same on one day."""
        return self.pick("Then", "Later", "After that", "An hour later,", "In the evening,")

    def tell(self, fact: str, ask: str, step: str) -> None:
        """Adds an event.

        Args:
          fact: Sentences of the question.
          ask: The sentence that asks for the value, used where the story ends here.
          step: The sentence of the chain, with the expression that gives the value in brackets: "Ann has [24-3] eggs."

        Raises:
          Misfit: If the value is not whole, or too small or large.
        """
        lead, expression, rest = re.split(r"[\[\]]", step)
        value = evaluate(expression)
        if value.denominator != 1 or not _SMALLEST <= value <= _LARGEST:
            raise Misfit
        lead, sign = (lead[:-1], "$") if lead.endswith("$") else (lead, "")
        written = f"{lead}{expression} = {sign}<<{expression}={value}>>{value}{rest}"
        self.value = int(value)
        self._beats.append(_Beat(fact, ask, written, expression, self.value))

    def finish(self, schema: str, steps: int) -> Problem:
        """Lets events happen until the chain has so many steps, and asks for the last value."""
        while len(self._beats) < steps:
            self._go_on()
        beats = self._beats[:steps]
        lines = [*(beat.step for beat in beats), f"#### {beats[-1].value}"]
        question = " ".join([*(beat.fact for beat in beats), beats[-1].ask])
        return Problem(schema, question, "\n".join(lines), beats[-1].value, tuple(beat.expression for beat in beats))

    def _go_on(self) -> None:
        waiting = [event for event in self.events if event not in self._told]
        for event in self._rng.sample(waiting, len(waiting)):
            try:
                event(self)
            except Misfit:
                continue
            self._told.append(event)
            return
        raise Misfit


def make_problem(schema: Schema, steps: int, rng: random.Random) -> Problem:
    """Draws a problem of `steps` steps.

    Raises:
      Misfit: If the draw made no sensible problem.
    """
    story = Story(rng)
    schema.open(story)
    return story.finish(schema.name, steps)


def _is_lowest(a: int, b: int) -> bool:
    return not any(a % k == 0 and b % k == 0 for k in range(2, b + 1))
