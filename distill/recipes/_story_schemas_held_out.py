"""Kinds of story that training never tells, so that a test can ask for more than numbers exchanged."""

from __future__ import annotations

from attar.distill.recipes._story import Schema, Story
from attar.distill.recipes._story_events import AMOUNT, PEOPLE
from attar.distill.recipes._story_money import COST


def _fence(s: Story) -> None:
    s.events = COST
    length, width, gate, price = s.between(8, 60), s.between(5, 40), s.between(2, 6), s.between(4, 30)
    place = s.pick("garden", "meadow", "playground", "yard")
    s.tell(
        f"{s.name} fences a rectangular {place} that is {length} meters long and {width} meters wide.",
        f"How many meters is it around the {place}?",
        f"Around the {place} it is [2*({length}+{width})] meters.",
    )
    s.tell(
        f"A gate of {gate} meters needs no fence.",
        "How many meters of fence are needed?",
        f"The fence is [{s.value}-{gate}] meters long.",
    )
    s.tell(
        f"A meter of fence costs ${price}.",
        "How many dollars does the fence cost?",
        f"The fence costs $[{s.value}*{price}].",
    )


def _tickets(s: Story) -> None:
    s.events = COST
    adults, children, price = s.between(2, 12), s.between(2, 20), 2 * s.between(3, 15)
    place = s.pick("zoo", "museum", "circus", "theater")
    s.tell(
        f"A ticket for the {place} costs ${price} for an adult and half of that for a child.",
        "How many dollars does a ticket for a child cost?",
        f"A child pays $[{price}/2].",
    )
    s.tell(
        f"{s.name} buys tickets for {adults} adults and {children} children.",
        "How many dollars do the tickets cost?",
        f"The tickets cost $[{adults}*{price}+{children}*{s.value}].",
    )


def _recipe(s: Story) -> None:
    dish, grain = s.pick("risotto", "pilaf", "porridge"), s.pick("rice", "millet", "barley")
    s.things, s.events = f"kilograms of {grain}", AMOUNT
    people, each, days = 10 * s.between(4, 40), s.pick("0.1", "0.15", "0.2", "0.25"), s.between(2, 7)
    s.tell(
        f"{s.name} cooks {dish} for {people} people and takes {each} {s.things} for each.",
        f"How many {s.things} does {s.name} take?",
        f"{s.name} takes [{people}*{each}] {s.things}.",
    )
    s.tell(
        f"{s.He} plans this meal for {days} days and buys as much as it takes.",
        f"How many {s.things} does {s.name} buy?",
        f"For {days} days {s.he} buys [{s.value}*{days}] {s.things}.",
    )


def _camp(s: Story) -> None:
    s.things, s.events = s.pick("campers", "hikers", "climbers"), PEOPLE
    tents, small, large, smaller = s.between(4, 30), s.between(2, 4), s.between(5, 8), s.between(2, 20)
    s.tell(
        f"{s.name} runs a camp with {tents} tents for {large} {s.things} each.",
        f"How many {s.things} find room in these tents?",
        f"In these tents [{tents}*{large}] {s.things} find room.",
    )
    s.tell(
        f"There are also {smaller} tents for {small} {s.things} each, and all tents are full.",
        f"How many {s.things} are in the camp?",
        f"In the camp there are [{s.value}+{smaller}*{small}] {s.things}.",
    )


HELD_OUT_SCHEMAS = (
    Schema("fence", _fence),
    Schema("tickets", _tickets),
    Schema("recipe", _recipe),
    Schema("camp", _camp),
)
"""Kinds of story that only the second test part tells; what follows their openings is known from training."""
