"""How word problems begin: one function a kind of story, told in two or three events."""

from __future__ import annotations

from attar.distill.recipes._story import Schema, Story
from attar.distill.recipes._story_events import AMOUNT, DISTANCE, PEOPLE, THINGS
from attar.distill.recipes._story_money import COST, MONEY, draw_price


def _bakery(s: Story) -> None:
    s.things, s.events = s.pick("muffins", "rolls", "cookies", "pretzels", "buns"), THINGS
    trays, each, fewer = s.between(3, 14), s.between(6, 24), s.between(3, 17)
    s.tell(
        f"{s.name} bakes {trays} trays of {each} {s.things} in the morning.",
        f"How many {s.things} does {s.name} bake in the morning?",
        f"In the morning {s.name} bakes [{trays}*{each}] {s.things}.",
    )
    s.tell(
        f"In the afternoon {s.he} bakes {fewer} {s.things} fewer than in the morning.",
        f"How many {s.things} does {s.name} bake that day?",
        f"In the whole day {s.he} bakes [{s.value}+{s.value}-{fewer}] {s.things}.",
    )


def _farm(s: Story) -> None:
    s.things, s.events = "eggs", THINGS
    hens, weekly, weeks = s.between(4, 30), s.between(3, 6), s.between(2, 6)
    s.tell(
        f"{s.name} keeps {hens} hens, each of which lays {weekly} eggs a week.",
        f"How many eggs does {s.name} collect in a week?",
        f"The hens lay [{hens}*{weekly}] eggs a week.",
    )
    s.tell(
        f"{s.He} collects the eggs for {weeks} weeks.",
        f"How many eggs does {s.name} collect in that time?",
        f"In {weeks} weeks that makes [{s.value}*{weeks}] eggs.",
    )


def _collection(s: Story) -> None:
    s.things, s.events = s.pick("marbles", "stamps", "shells", "coins", "postcards"), THINGS
    own, times, more = s.between(8, 60), s.between(2, 4), s.between(3, 25)
    friend = s.pick("sister", "brother", "neighbour")
    s.tell(
        f"{s.name} has {own} {s.things}. {s.His} {friend} has {more} more than {times} times as many.",
        f"How many {s.things} does {s.his} {friend} have?",
        f"{s.His} {friend} has [{times}*{own}+{more}] {s.things}.",
    )
    s.tell(
        f"{s.name} receives all of them and adds them to {s.his} own.",
        f"How many {s.things} does {s.name} have then?",
        f"{s.name} then has [{own}+{s.value}] {s.things}.",
    )


def _workshop(s: Story) -> None:
    s.things, s.events = s.pick("candles", "bowls", "toys", "kites", "baskets"), THINGS
    hourly, hours, days, flawed = s.between(2, 9), s.between(3, 8), s.between(2, 6), s.between(2, 12)
    s.tell(
        f"{s.name} makes {hourly} {s.things} an hour and works {hours} hours a day.",
        f"How many {s.things} does {s.name} make in a day?",
        f"In a day {s.name} makes [{hourly}*{hours}] {s.things}.",
    )
    s.tell(
        f"{s.He} works for {days} days, and {flawed} of the {s.things} turn out flawed.",
        f"How many {s.things} are without a flaw?",
        f"Without a flaw there are [{s.value}*{days}-{flawed}] {s.things}.",
    )


def _savings(s: Story) -> None:
    s.events = MONEY
    start, weekly, weeks = s.between(10, 90), s.between(5, 30), s.between(3, 12)
    s.tell(
        f"{s.name} saves ${weekly} a week for {weeks} weeks.",
        f"How many dollars does {s.name} save in that time?",
        f"{s.name} saves $[{weekly}*{weeks}].",
    )
    s.tell(
        f"Before that {s.he} had ${start}.",
        f"How many dollars does {s.name} have in the end?",
        f"In the end {s.he} has $[{start}+{s.value}].",
    )


def _wages(s: Story) -> None:
    s.events = MONEY
    hours, days, rate, extra = s.between(3, 9), s.between(2, 6), s.between(9, 28), s.between(20, 120)
    s.tell(
        f"{s.name} works {hours} hours a day on {days} days a week.",
        f"How many hours does {s.name} work in a week?",
        f"{s.name} works [{hours}*{days}] hours.",
    )
    s.tell(
        f"{s.He} gets ${rate} an hour.",
        f"How many dollars does {s.name} earn in a week?",
        f"That earns $[{s.value}*{rate}].",
    )
    s.tell(
        f"At the end of the week {s.he} also gets a bonus of ${extra}.",
        f"How many dollars does {s.name} get in that week?",
        f"With the bonus {s.he} gets $[{s.value}+{extra}].",
    )


def _stall(s: Story) -> None:
    s.events = MONEY
    goods = s.pick("cups of lemonade", "slices of cake", "bunches of flowers", "bowls of soup")
    price, shown = draw_price(s)
    sold, costs = s.between(12, 80), s.between(5, 60)
    s.tell(
        f"At {s.his} stall {s.name} sells {sold} {goods} for ${shown} each.",
        f"How many dollars does {s.name} take in?",
        f"{s.name} takes in $[{sold}*{price}].",
    )
    s.tell(
        f"What {s.he} needed for it cost ${costs}.",
        f"How many dollars of profit does {s.name} make?",
        f"The profit is $[{s.value}-{costs}].",
    )


def _shopping(s: Story) -> None:
    s.events = COST
    first, second = s.pick("shirts", "plates", "lamps", "chairs"), s.pick("towels", "glasses", "pillows", "forks")
    (price, shown), (other_price, other_shown) = draw_price(s), draw_price(s)
    n, m = s.between(2, 20), s.between(2, 20)
    s.tell(
        f"{s.name} buys {n} {first} for ${shown} each.",
        f"How many dollars do the {first} cost?",
        f"The {first} cost $[{n}*{price}].",
    )
    s.tell(
        f"{s.He} also buys {m} {second} for ${other_shown} each.",
        f"How many dollars does {s.name} spend on both?",
        f"Both cost $[{s.value}+{m}*{other_price}].",
    )


def _cycling(s: Story) -> None:
    s.things, s.events = s.pick("kilometers", "miles"), DISTANCE
    speed, hours, slower, more = s.between(9, 30), s.between(2, 6), s.between(2, 7), s.between(2, 5)
    s.tell(
        f"{s.name} cycles for {hours} hours at {speed} {s.things} an hour.",
        f"How many {s.things} does {s.name} cycle?",
        f"{s.name} cycles [{hours}*{speed}] {s.things}.",
    )
    s.tell(
        f"Against the wind {s.he} then cycles {more} hours at a speed that is lower by {slower} {s.things} an hour.",
        f"How many {s.things} has {s.name} cycled altogether?",
        f"Altogether {s.he} has cycled [{s.value}+{more}*({speed}-{slower})] {s.things}.",
    )


def _van(s: Story) -> None:
    s.things, s.events = s.pick("kilometers", "miles"), DISTANCE
    stops, apart, home = s.between(4, 20), s.between(2, 15), s.between(5, 40)
    s.tell(
        f"{s.name} drives a delivery van to {stops} shops in a row, each {apart} {s.things} after the one before.",
        f"How many {s.things} are there from the first shop to the last?",
        f"Between the shops there are [({stops}-1)*{apart}] {s.things}.",
    )
    s.tell(
        f"The first shop is {home} {s.things} from the depot, where the trip starts.",
        f"How many {s.things} does {s.name} drive from the depot to the last shop?",
        f"From the depot {s.he} drives [{home}+{s.value}] {s.things}.",
    )


def _tank(s: Story) -> None:
    s.things, s.events = s.pick("liters of water", "liters of juice", "liters of milk"), AMOUNT
    rate, minutes, loss = s.between(6, 40), s.between(4, 30), s.between(1, 5)
    s.tell(
        f"{s.name} fills an empty tank with {rate} {s.things} a minute for {minutes} minutes.",
        f"How many {s.things} flow into the tank?",
        f"Into the tank flow [{rate}*{minutes}] {s.things}.",
    )
    s.tell(
        f"Through a leak it loses {loss} liters in each of these minutes.",
        f"How many {s.things} are in the tank?",
        f"In the tank there are [{s.value}-{loss}*{minutes}] {s.things}.",
    )


def _orchard(s: Story) -> None:
    fruit = s.pick("apples", "pears", "plums", "cherries")
    s.things, s.events = f"kilograms of {fruit}", AMOUNT
    rows, trees, each = s.between(3, 12), s.between(4, 15), s.between(5, 30)
    s.tell(
        f"{s.name} has an orchard of {rows} rows with {trees} trees each.",
        f"How many trees does {s.name} have?",
        f"{s.name} has [{rows}*{trees}] trees.",
    )
    s.tell(
        f"Each tree gives {each} {s.things}.",
        f"How many {s.things} does {s.name} harvest?",
        f"The trees give [{s.value}*{each}] {s.things}.",
    )


def _trip(s: Story) -> None:
    s.things, s.events = s.pick("students", "children", "scouts"), PEOPLE
    buses, seats, empty = s.between(2, 9), s.between(18, 52), s.between(2, 15)
    s.tell(
        f"{s.name} leads a trip with {buses} buses of {seats} seats.",
        "How many seats are there?",
        f"There are [{buses}*{seats}] seats.",
    )
    s.tell(
        f"{empty} seats stay empty, and {s.things} sit on all the others.",
        f"How many {s.things} are on the trip?",
        f"On the trip there are [{s.value}-{empty}] {s.things}.",
    )


def _concert(s: Story) -> None:
    s.things, s.events = s.pick("guests", "visitors", "fans"), PEOPLE
    rows, seats, sold, standing = (
        s.between(6, 25),
        s.between(8, 30),
        s.pick("1/2", "2/3", "3/4", "4/5"),
        s.between(5, 60),
    )
    s.tell(
        f"{s.name} organises a concert in a hall with {rows} rows of {seats} seats.",
        "How many seats does the hall have?",
        f"The hall has [{rows}*{seats}] seats.",
    )
    s.tell(
        f"On the evening {sold} of the seats are taken.",
        "How many seats are taken?",
        f"Of these [{s.value}*{sold}] are taken.",
    )
    s.tell(
        f"Besides those who sit there are {standing} {s.things} who stand.",
        f"How many {s.things} are there?",
        f"Together there are [{s.value}+{standing}] {s.things}.",
    )


SCHEMAS = (
    Schema("bakery", _bakery),
    Schema("farm", _farm),
    Schema("collection", _collection),
    Schema("workshop", _workshop),
    Schema("savings", _savings),
    Schema("wages", _wages),
    Schema("stall", _stall),
    Schema("shopping", _shopping),
    Schema("cycling", _cycling),
    Schema("delivery van", _van),
    Schema("tank", _tank),
    Schema("orchard", _orchard),
    Schema("school trip", _trip),
    Schema("concert", _concert),
)
"""Kinds of story for training, validation and test."""
