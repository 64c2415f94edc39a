"""What may happen to money in a word problem: to dollars that someone has, and to what something costs."""

from __future__ import annotations

from attar.distill.recipes._story import Story


def draw_price(s: Story) -> tuple[str, str]:
    """A price as a number in the chain, and as the question shows it."""
    cents = s.pick("", "", ".5", ".25", ".75")
    whole = s.between(1, 9)
    return (f"{whole}{cents}", f"{whole + float(cents):.2f}") if cents else (str(whole + 1), str(whole + 1))


# Dollars that someone has.
def _spend(s: Story) -> None:
    k, what = s.part(), s.pick("a book", "a scarf", "a lamp", "a ticket", "a present", "new shoes")
    s.tell(
        f"{s.later()} {s.he} spends ${k} on {what}.",
        f"How many dollars does {s.name} have left?",
        f"{s.name} has $[{s.value}-{k}] left.",
    )


def _buy_snacks(s: Story) -> None:
    price, shown = draw_price(s)
    n = s.between(2, 12)
    s.tell(
        f"{s.later()} {s.he} buys {n} {s.pick('sandwiches', 'notebooks', 'plants', 'brushes')} at ${shown} each.",
        f"How many dollars remain to {s.name}?",
        f"{s.name} still has $[{s.value}-{n}*{price}].",
    )


def _earn(s: Story) -> None:
    hours, rate = s.between(2, 12), s.between(8, 25)
    s.tell(
        f"{s.later()} {s.he} works {hours} hours for ${rate} an hour.",
        f"How many dollars does {s.name} have then?",
        f"{s.name} then has $[{s.value}+{hours}*{rate}].",
    )


def _donate(s: Story) -> None:
    p = s.percent(5, 10, 20, 25, 30, 50)
    s.tell(
        f"{s.later()} {s.he} donates {p}% of {s.his} money.",
        f"How many dollars does {s.name} keep?",
        f"{s.name} keeps $[{s.value}-{s.value}*{p}/100].",
    )


def _share_money(s: Story) -> None:
    k = s.divisor(2, 8)
    s.tell(
        f"{s.later()} {s.he} divides {s.his} money equally among {s.his} {k} children.",
        "How many dollars does each child get?",
        f"Each child gets $[{s.value}/{k}].",
    )
    s.events = ()


# Dollars that something costs.
def _discount(s: Story) -> None:
    p = s.percent(5, 10, 15, 20, 25, 30, 40)
    s.tell(
        f"There is a discount of {p}% on the total so far.",
        "How many dollars are to be paid?",
        f"With the discount it is $[{s.value}-{s.value}*{p}/100].",
    )


def _tax(s: Story) -> None:
    p = s.percent(4, 5, 8, 10, 12, 20)
    s.tell(
        f"A tax of {p}% of the amount so far is added.",
        "How many dollars does it come to with the tax?",
        f"With the tax it is $[{s.value}+{s.value}*{p}/100].",
    )


def _coupon(s: Story) -> None:
    k = s.between(2, min(40, s.value // 2))
    s.tell(
        f"{s.name} uses a coupon that takes ${k} off.",
        "How many dollars remain to be paid?",
        f"After the coupon it is $[{s.value}-{k}].",
    )


def _delivery(s: Story) -> None:
    n, each = s.between(2, 6), s.between(3, 15)
    s.tell(
        f"Delivery takes {n} trips, each of which adds ${each} to the bill.",
        "How many dollars is the bill with delivery?",
        f"With delivery it is $[{s.value}+{n}*{each}].",
    )


def _split_bill(s: Story) -> None:
    k = s.divisor(2, 10)
    s.tell(
        f"{s.name} and {k - 1} {'friend' if k == 2 else 'friends'} split the bill equally.",
        f"How many dollars does {s.name} pay?",
        f"{s.name} pays $[{s.value}/{k}].",
    )
    s.events = (_change,)


def _change(s: Story) -> None:
    note = next((n for n in (20, 50, 100, 200, 500, 1000) if n > s.value), 0)
    s.tell(
        f"{s.name} pays with ${note}.",
        f"How many dollars does {s.he} get back?",
        f"{s.name} gets back $[{note}-{s.value}].",
    )
    s.events = MONEY if s.value > 20 else ()


MONEY = (_spend, _buy_snacks, _earn, _donate, _share_money)
COST = (_discount, _tax, _coupon, _delivery, _split_bill, _change)
