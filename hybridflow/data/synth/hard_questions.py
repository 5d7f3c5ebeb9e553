"""Questions on reports, and their gold answers, computed from the facts with exact decimals."""

from __future__ import annotations

import random
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal, NamedTuple

from hybridflow.data.chat_template import CHOICE_LETTERS
from hybridflow.data.synth.hard_issuers import YEARS, Fact, Issuer
from hybridflow.data.synth.hard_words import CITIES, LINE_ITEMS

HardKind = Literal["lookup", "two_hop", "arithmetic", "choice"]


class Question(NamedTuple):
    """A question with its answer and the facts that lead there, in the order of use."""

    text: str
    answer: str
    """Bare answer; the letter for a four-choice question."""
    formula: str
    """How the answer follows from the facts; "copy" where it is the last fact's value."""
    facts: list[Fact]
    choices: list[str]
    """Four answers, or none."""


_LOOKUPS = {
    "registered office": "In which city is the registered office of {company}?",
    "chair": "Who chairs the board of {company}?",
    "auditor": "Which firm audited the accounts of {company} for 2024?",
    "guarantor": "Which bank guarantees the notes of {company}?",
    "issue year": "In which year did {company} issue its notes?",
}
_TWO_HOPS = {
    ("guarantor", "bank city"): "In which city is the head office of the bank that guarantees the notes of {company}?",
    ("guarantor", "bank head"): "Who is the chief executive of the bank that guarantees the notes of {company}?",
    ("auditor", "firm city"): "In which city are the offices of the firm that audited the 2024 accounts of {company}?",
    ("auditor", "firm head"): "Who is the managing partner of the firm that audited the 2024 accounts of {company}?",
}
_UNIT = " Give the number in millions of {currency}, without the unit."
_COSTS = LINE_ITEMS[2:]


def generate_question(stream: random.Random, issuers: list[Issuer], kind: HardKind) -> Question:
    """A question of `kind` about one of the issuers."""
    issuer = stream.choice(issuers)
    if kind == "lookup":
        return _lookup(stream, issuer)
    if kind == "two_hop":
        return _two_hop(stream, issuer)
    if kind == "arithmetic":
        return stream.choice(_ARITHMETIC)(stream, issuer)
    return _choice(stream, issuer, issuers)


def format_answer(value: Decimal) -> str:
    """Plain digits: no exponent, no thousands separator, no trailing zeros after the point."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def read_number(fact: Fact) -> Decimal:
    """The value of a fact that is a number."""
    return Decimal(fact.value.replace(",", ""))


def add_choices(stream: random.Random, base: Question, stated: set[str], all_values: set[str]) -> Question:
    """`base` with four choices: the last fact's value and three wrong ones, those that the document states first."""
    gold = base.facts[-1].value
    wrong, unstated = sorted(stated - {gold}), sorted(all_values - stated - {gold})
    stream.shuffle(wrong)
    stream.shuffle(unstated)
    choices = [gold, *(wrong + unstated)[: len(CHOICE_LETTERS) - 1]]
    stream.shuffle(choices)
    return base._replace(answer=CHOICE_LETTERS[choices.index(gold)], choices=choices)


def _lookup(stream: random.Random, issuer: Issuer) -> Question:
    name = stream.choice(list(_LOOKUPS))
    fact = issuer.fact(name)
    return Question(_LOOKUPS[name].format(company=issuer.name), fact.value, "copy", [fact], [])


def _two_hop(stream: random.Random, issuer: Issuer) -> Question:
    first, second = stream.choice(list(_TWO_HOPS))
    facts = [issuer.fact(first), issuer.fact(second)]
    return Question(_TWO_HOPS[first, second].format(company=issuer.name), facts[1].value, "copy", facts, [])


def _cost_and_interest(stream: random.Random, issuer: Issuer) -> Question:
    facts = [issuer.fact("principal"), issuer.fact("coupon"), issuer.fact("issue cost")]
    principal, coupon, cost = map(read_number, facts)
    text = f"What is the sum of the issue cost and the first year's interest of the notes of {issuer.name}?"
    answer = principal * coupon / 100 + cost
    return _numeric(text, issuer, answer, "principal * coupon / 100 + issue cost", facts)


def _simple_interest(stream: random.Random, issuer: Issuer) -> Question:
    facts = [issuer.fact("principal"), issuer.fact("coupon"), issuer.fact("term")]
    principal, coupon, term = map(read_number, facts)
    text = f"How much simple interest do the notes of {issuer.name} bear from issue until they fall due?"
    return _numeric(text, issuer, principal * coupon / 100 * term, "principal * coupon / 100 * term", facts)


def _difference(stream: random.Random, issuer: Issuer) -> Question:
    item, later, earlier, facts = _two_years(stream, issuer)
    text = (
        f"By how much did the line '{item}' of {issuer.name} change from {earlier} to {later}? "
        "A decrease is a negative number."
    )
    return _numeric(text, issuer, read_number(facts[1]) - read_number(facts[0]), "second - first", facts)


def _percentage_change(stream: random.Random, issuer: Issuer) -> Question:
    item, later, earlier, facts = _two_years(stream, issuer)
    first, second = map(read_number, facts)
    percent = ((second - first) / first * 100).quantize(Decimal("0.01"), ROUND_HALF_UP)
    text = (
        f"By how many percent did the line '{item}' of {issuer.name} change from {earlier} to {later}? "
        "Round to two decimal places; a decrease is a negative number. Give the number without the percent sign."
    )
    return Question(text, format_answer(percent), "(second - first) / first * 100, 2 decimals half up", facts, [])


def _sum_items(stream: random.Random, issuer: Issuer) -> Question:
    year, items = stream.choice(YEARS), stream.sample(_COSTS, 3)
    facts = [issuer.fact(item, year) for item in items]
    text = f"What is the sum of the lines '{items[0]}', '{items[1]}' and '{items[2]}' of {issuer.name} in {year}?"
    return _numeric(text, issuer, sum(map(read_number, facts), Decimal(0)), "sum", facts)


def _two_years(stream: random.Random, issuer: Issuer) -> tuple[str, str, str, list[Fact]]:
    """(line item, later year, earlier year, facts earlier first); the two amounts differ."""
    item = stream.choice(LINE_ITEMS)
    pairs = [
        (later, earlier)
        for place, later in enumerate(YEARS)
        for earlier in YEARS[place + 1 :]
        if issuer.fact(item, later).value != issuer.fact(item, earlier).value
    ]
    later, earlier = stream.choice(pairs)
    return item, later, earlier, [issuer.fact(item, earlier), issuer.fact(item, later)]


def _numeric(text: str, issuer: Issuer, answer: Decimal, formula: str, facts: list[Fact]) -> Question:
    return Question(text + _UNIT.format(currency=issuer.currency), format_answer(answer), formula, facts, [])


_ARITHMETIC: tuple[Callable[[random.Random, Issuer], Question], ...] = (
    _cost_and_interest,
    _simple_interest,
    _difference,
    _percentage_change,
    _sum_items,
)


def _choice(stream: random.Random, issuer: Issuer, issuers: list[Issuer]) -> Question:
    """A question for a city, with the cities of other companies and banks as wrong answers."""
    asked = stream.choice(("registered office", "bank city"))
    if asked == "registered office":
        base = Question(_LOOKUPS[asked].format(company=issuer.name), "", "copy", [issuer.fact(asked)], [])
    else:
        facts = [issuer.fact("guarantor"), issuer.fact(asked)]
        base = Question(_TWO_HOPS["guarantor", asked].format(company=issuer.name), "", "copy", facts, [])
    stated = {other.fact(name).value for other in issuers for name in ("registered office", "bank city", "firm city")}
    return add_choices(stream, base, stated, set(CITIES))
