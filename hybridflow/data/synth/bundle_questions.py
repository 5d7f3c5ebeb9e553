"""Questions on bundles of documents, two hops and arithmetic over several of them, with exact gold answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from decimal import Decimal
from typing import Literal, NamedTuple

from hybridflow.data.synth.hard_contract_questions import generate_contract_question
from hybridflow.data.synth.hard_contracts import Contract
from hybridflow.data.synth.hard_issuers import YEARS, Fact, Issuer
from hybridflow.data.synth.hard_questions import Question, format_answer, generate_question, read_number
from hybridflow.data.synth.hard_words import LINE_ITEMS

BundleKind = Literal["two_hop", "arithmetic", "two_hop_arithmetic"]

_AS_STATED = (
    " Take the numbers as the accounts state them, in millions, without converting currencies. Give the number without "
    "the unit"
)
_SIGNED = "; it is negative where the first is the smaller."
_POINTERS = {
    "auditor": "the company whose 2024 accounts {value} audited",
    "guarantor": "the company whose notes {value} guarantees",
}
"""Facts by which a company can be named without its name: a firm or bank serves one."""


class _Value(NamedTuple):
    """A line of a company's accounts, and how the question names it."""

    text: str
    facts: list[Fact]
    """The last has the number."""

    @property
    def number(self) -> Decimal:
        return read_number(self.facts[-1])


def generate_bundle_question(
    stream: random.Random, issuers: list[Issuer], contracts: list[Contract], kind: BundleKind
) -> Question:
    """A question of `kind`, at least two documents of which hold its facts."""
    if kind == "two_hop":
        return _two_hop(stream, issuers, contracts)
    chosen = stream.sample(issuers, min(len(issuers), 3))
    name = _name_directly if kind == "arithmetic" else _name_by_pointer
    return stream.choice(_SUMS)(stream, chosen, name)


def _two_hop(stream: random.Random, issuers: list[Issuer], contracts: list[Contract]) -> Question:
    """From a report or an agreement to the register, where the bank, the firm or the court stands."""
    if stream.random() < 0.5:
        return generate_question(stream, issuers, "two_hop")
    question = generate_contract_question(stream, contracts, "two_hop")
    while question.facts[0].name == "agreement":  # both facts are within the agreement
        question = generate_contract_question(stream, contracts, "two_hop")
    return question


_Namer = Callable[[random.Random, Issuer, str, str], _Value]


def _name_directly(_stream: random.Random, issuer: Issuer, item: str, year: str) -> _Value:
    return _Value(f"the line '{item}' for {year} of {issuer.name}", [issuer.fact(item, year)])


def _name_by_pointer(stream: random.Random, issuer: Issuer, item: str, year: str) -> _Value:
    pointer = issuer.fact(stream.choice(list(_POINTERS)))
    company = _POINTERS[pointer.name].format(value=pointer.value)
    return _Value(f"the line '{item}' for {year} of {company}", [pointer, issuer.fact(item, year)])


def _difference(stream: random.Random, chosen: list[Issuer], name: _Namer) -> Question:
    item, year = stream.choice(LINE_ITEMS), stream.choice(YEARS)
    first, second = (name(stream, issuer, item, year) for issuer in chosen[:2])
    text = f"By how much is {first.text} above {second.text}?{_AS_STATED}{_SIGNED}"
    return _question(text, first.number - second.number, "first value - second value", [first, second])


def _change(stream: random.Random, chosen: list[Issuer], name: _Namer) -> Question:
    """The same over two years."""
    item, (later, earlier) = stream.choice(LINE_ITEMS), stream.sample(YEARS, 2)
    first, second = name(stream, chosen[0], item, later), name(stream, chosen[1], item, earlier)
    text = f"By how much is {first.text} above {second.text}?{_AS_STATED}{_SIGNED}"
    return _question(text, first.number - second.number, "first value - second value", [first, second])


def _sum(stream: random.Random, chosen: list[Issuer], name: _Namer) -> Question:
    item, year = stream.choice(LINE_ITEMS), stream.choice(YEARS)
    values = [name(stream, issuer, item, year) for issuer in chosen]
    listed = f"{', '.join(value.text for value in values[:-1])} and {values[-1].text}"
    text = f"What is the sum of {listed}?{_AS_STATED}."
    return _question(text, sum((value.number for value in values), Decimal(0)), "sum of the values", values)


_SUMS = (_difference, _change, _sum)


def _question(text: str, answer: Decimal, formula: str, values: list[_Value]) -> Question:
    return Question(text, format_answer(answer), formula, [fact for value in values for fact in value.facts], [])
