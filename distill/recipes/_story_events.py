"""What may happen in a word problem after its opening, by what the story counts."""

from __future__ import annotations

from attar.distill.recipes._story import Story
from attar.distill.recipes._story_money import MONEY, draw_price


# Things that someone has.
def _give_away(s: Story) -> None:
    k, to = s.part(), s.pick("a neighbour", "a friend", f"{s.his} cousin", "the school", f"{s.his} brother")
    s.tell(
        f"{s.later()} {s.he} gives {k} of the {s.things} to {to}.",
        f"How many {s.things} does {s.name} have left?",
        f"{s.name} has [{s.value}-{k}] {s.things} left.",
    )


def _lose_fraction(s: Story) -> None:
    share = s.fraction()
    s.tell(
        f"{s.later()} {s.he} throws away {share} of the {s.things}, since they are damaged.",
        f"How many {s.things} does {s.name} still have?",
        f"That leaves [{s.value}-{s.value}*{share}] {s.things}.",
    )


def _sell_percent(s: Story) -> None:
    p = s.percent(10, 20, 25, 40, 50, 60, 75)
    s.tell(
        f"{s.later()} {s.he} sells {p}% of the {s.things}.",
        f"How many {s.things} does {s.name} keep?",
        f"{s.name} keeps [{s.value}-{s.value}*{p}/100] {s.things}.",
    )


def _get_boxes(s: Story) -> None:
    boxes, each = s.between(2, 9), s.between(3, 24)
    s.tell(
        f"{s.later()} {s.he} gets {boxes} {s.pick('boxes', 'bags', 'cartons')} with {each} more {s.things} in each.",
        f"How many {s.things} does {s.name} have now?",
        f"Now {s.name} has [{s.value}+{boxes}*{each}] {s.things}.",
    )


def _match(s: Story) -> None:
    k, who = s.between(2, 5), s.pick("a friend", f"{s.his} aunt", "a colleague")
    s.tell(
        f"{s.later()} {who} adds {k} times as many {s.things} as {s.name} has.",
        f"How many {s.things} are there together?",
        f"Together there are [{s.value}+{k}*{s.value}] {s.things}.",
    )


def _pack(s: Story) -> None:
    k, boxes = s.divisor(), s.pick("boxes", "bags", "baskets", "packs")
    s.tell(
        f"{s.later()} {s.he} packs all the {s.things} into {boxes} of {k}.",
        f"How many {boxes} does {s.name} fill?",
        f"{s.name} fills [{s.value}/{k}] {boxes}.",
    )
    s.things, s.events = boxes, PACKED


def _sell_all(s: Story) -> None:
    price, shown = draw_price(s)
    s.tell(
        f"{s.later()} {s.he} sells all the {s.things} for ${shown} each.",
        f"How many dollars does {s.name} get for them?",
        f"{s.name} gets $[{s.value}*{price}] for them.",
    )
    s.events = MONEY


# A way that someone has gone.
def _go_further(s: Story) -> None:
    hours, speed = s.between(2, 6), s.between(5, 40)
    s.tell(
        f"{s.later()} {s.he} goes on for {hours} hours at {speed} {s.things} an hour.",
        f"How many {s.things} has {s.name} covered by then?",
        f"{s.name} has covered [{s.value}+{hours}*{speed}] {s.things}.",
    )


def _detour(s: Story) -> None:
    k = s.between(2, 45)
    s.tell(
        f"A closed road then adds a detour of {k} {s.things}.",
        f"How many {s.things} is it with the detour?",
        f"With the detour it is [{s.value}+{k}] {s.things}.",
    )


def _both_ways(s: Story) -> None:
    s.tell(
        f"{s.He} comes back the same way.",
        f"How many {s.things} is it there and back?",
        f"There and back it is [{s.value}*2] {s.things}.",
    )


def _every_day(s: Story) -> None:
    days = s.between(2, 9)
    s.tell(
        f"{s.He} covers this distance {days} times in a month.",
        f"How many {s.things} is that in the month?",
        f"In the month {s.name} covers [{s.value}*{days}] {s.things}.",
    )
    s.events = (_remaining_way,)


def _remaining_way(s: Story) -> None:
    whole = s.value + s.between(20, 400)
    s.tell(
        f"{s.name} wants to reach {whole} {s.things} in all.",
        f"How many {s.things} are missing?",
        f"There are [{whole}-{s.value}] {s.things} missing.",
    )
    s.events = (_stages,)


def _stages(s: Story) -> None:
    k = s.divisor(2, 15)
    s.tell(
        f"{s.He} covers them in {k} equal stages.",
        f"How many {s.things} long is each stage?",
        f"Each stage is [{s.value}/{k}] {s.things} long.",
    )
    s.events = ()


# An amount by weight or volume.
def _use(s: Story) -> None:
    k = s.part()
    s.tell(
        f"{s.later()} {s.he} uses {k} {s.things}.",
        f"How many {s.things} are left?",
        f"There are [{s.value}-{k}] {s.things} left.",
    )


def _spoil(s: Story) -> None:
    share = s.fraction()
    s.tell(
        f"{s.later()} {share} of it is {s.pick('lost', 'given away', 'sold')}.",
        f"How many {s.things} remain?",
        f"There remain [{s.value}-{s.value}*{share}] {s.things}.",
    )


def _deliver(s: Story) -> None:
    n, each = s.between(2, 12), s.between(4, 30)
    s.tell(
        f"{s.later()} a truck brings {n} loads of {each} {s.things}.",
        f"How many {s.things} are there then?",
        f"Then there are [{s.value}+{n}*{each}] {s.things}.",
    )


def _fill(s: Story) -> None:
    size = s.pick("0.5", "0.25", str(s.divisor()))
    what = s.pick("bottles", "cans", "jars") if "liters" in s.things else s.pick("bags", "jars", "sacks")
    unit = s.things.split()[0]
    s.tell(
        f"{s.later()} {s.he} fills what there is into {what} of {size} {unit} each.",
        f"How many {what} does {s.name} fill?",
        f"{s.name} fills [{s.value}/{size}] {what}.",
    )
    s.things, s.events = what, PACKED


# People who come together.
def _leave(s: Story) -> None:
    k = s.part()
    s.tell(
        f"{s.soon()} {k} {s.things} leave.",
        f"How many {s.things} are still there?",
        f"There are still [{s.value}-{k}] {s.things}.",
    )


def _arrive(s: Story) -> None:
    n, each = s.between(2, 8), s.between(3, 12)
    s.tell(
        f"{s.soon()} {n} {s.pick('cars', 'vans', 'taxis')} arrive with {each} more {s.things} in each.",
        f"How many {s.things} are there now?",
        f"Now there are [{s.value}+{n}*{each}] {s.things}.",
    )


def _fraction_leaves(s: Story) -> None:
    share = s.fraction()
    s.tell(
        f"{s.soon()} {share} of the {s.things} go home.",
        f"How many {s.things} are still there?",
        f"There are still [{s.value}-{s.value}*{share}] {s.things}.",
    )


def _percent_helps(s: Story) -> None:
    p = s.percent(10, 20, 25, 30, 40, 50)
    s.tell(
        f"{s.soon()} {p}% of the {s.things} are asked to help, and only these stay.",
        f"How many {s.things} stay to help?",
        f"Of these [{s.value}*{p}/100] {s.things} stay to help.",
    )


def _form_groups(s: Story) -> None:
    k, groups = s.divisor(2, 15), s.pick("groups", "teams")
    s.tell(
        f"{s.soon()} the {s.things} form {groups} of {k}.",
        f"How many {groups} are there?",
        f"There are [{s.value}/{k}] {groups}.",
    )
    s.events = ()


def _collect(s: Story) -> None:
    price, shown = draw_price(s)
    s.tell(
        f"{s.soon()} {s.name} collects ${shown} from each of the {s.things} who are there.",
        f"How many dollars does {s.name} collect?",
        f"{s.name} collects $[{s.value}*{price}].",
    )
    s.events = MONEY


THINGS = (_give_away, _lose_fraction, _sell_percent, _get_boxes, _match, _pack, _sell_all)
PACKED = (_give_away, _sell_percent, _sell_all)
DISTANCE = (_go_further, _detour, _both_ways, _every_day, _remaining_way)
AMOUNT = (_use, _spoil, _deliver, _fill)
PEOPLE = (_leave, _arrive, _fraction_leaves, _percent_helps, _form_groups, _collect)
