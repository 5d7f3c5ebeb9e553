"""Facts of a hard-tier report, companies with their officers, notes and accounts, and the text blocks that state them.

A fact is stated once, in a block of its own subject. The same block holds decoys: the auditor before, a loan repaid,
the accounts of other years.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

from hybridflow.data.synth.hard_words import (
    ACTIVITIES,
    BANK_FORMS,
    CITIES,
    CURRENCIES,
    FIRM_FORMS,
    FIRST_NAMES,
    LEGAL_FORMS,
    LINE_ITEMS,
    NAME_STEMS,
    SURNAMES,
)


class Fact(NamedTuple):
    """One value that the document states."""

    name: str
    subject: str
    period: str
    """Year of the accounts, or empty."""
    value: str
    """As written in the text; numbers with thousands separators, money in millions save for rents and deposits."""
    text: str
    """The sentence or table row that states it."""
    heading: str
    """First line of its block; unique in the document."""
    replaced: str = ""
    """An earlier clause with another value, which `text` replaces; or empty."""


Facts = dict[tuple[str, str], Fact]
"""Facts by (name, period)."""


def write_block(heading: str, subject: str, stated: list[tuple[str, list[tuple[str, str]]]], facts: Facts) -> str:
    """A heading and its sentences; each sentence comes with the (name, value) pairs that it states."""
    for text, pairs in stated:
        for name, value in pairs:
            facts[name, ""] = Fact(name, subject, "", value, text, heading)
    return heading + "\n" + " ".join(text for text, _ in stated)


def make_person(stream: random.Random) -> str:
    return f"{stream.choice(FIRST_NAMES)} {stream.choice(SURNAMES)}"


def make_names(stream: random.Random, num: int, ending: Callable[[], str]) -> list[str]:
    """`num` different names with endings drawn one by one."""
    names: dict[str, None] = {}
    while len(names) < num:
        names[f"{stream.choice(NAME_STEMS)} {ending()}"] = None
    return list(names)


def format_amount(value: Decimal) -> str:
    """Thousands separators and the digits that the value has: 1,234.5"""
    return f"{value:,f}"


YEARS = ("2024", "2023", "2022", "2021")


class Issuer(NamedTuple):
    """A company, its facts by (name, period), and the blocks that state them."""

    name: str
    currency: str
    bank: str
    firm: str
    facts: Facts
    blocks: list[str]

    def fact(self, name: str, period: str = "") -> Fact:
        return self.facts[name, period]


def generate_issuers(stream: random.Random, num_issuers: int) -> list[Issuer]:
    """Companies whose names, and whose banks' and auditors' names, occur once each."""
    return [
        _generate_issuer(stream, company, bank, firm)
        for company, bank, firm in zip(
            make_names(stream, num_issuers, lambda: f"{stream.choice(ACTIVITIES)} {stream.choice(LEGAL_FORMS)}"),
            make_names(stream, num_issuers, lambda: stream.choice(BANK_FORMS)),
            make_names(stream, num_issuers, lambda: f"{stream.choice(SURNAMES)} {stream.choice(FIRM_FORMS)}"),
            strict=True,
        )
    ]


def _generate_issuer(stream: random.Random, company: str, bank: str, firm: str) -> Issuer:
    currency = stream.choice(CURRENCIES)
    facts: Facts = {}
    blocks = [
        _governance(stream, company, firm, facts),
        _notes(stream, company, bank, currency, facts),
        _accounts(stream, company, currency, facts),
        _counterparties(stream, company, bank, firm, facts),
    ]
    return Issuer(company, currency, bank, firm, facts, blocks)


def _governance(stream: random.Random, company: str, firm: str, facts: Facts) -> str:
    chair, chair_before = make_person(stream), make_person(stream)
    city, city_before = stream.sample(CITIES, 2)
    firm_before = f"{stream.choice(NAME_STEMS)} {stream.choice(SURNAMES)} {stream.choice(FIRM_FORMS)}"
    stated = [
        (f"The registered office of {company} is in {city}.", [("registered office", city)]),
        (f"Until 2019 the company was registered in {city_before}.", []),
        (f"The board of {company} is chaired by {chair}.", [("chair", chair)]),
        (f"The chair before was {chair_before}, who left in 2020.", []),
        (f"The accounts of {company} for 2024 were audited by {firm}.", [("auditor", firm)]),
        (f"Those for 2018 had been audited by {firm_before}.", []),
    ]
    return write_block(f"Governance of {company}", company, stated, facts)


def _notes(stream: random.Random, company: str, bank: str, currency: str, facts: Facts) -> str:
    principal = Decimal(stream.randrange(40, 1200, 5))
    cost = Decimal(stream.randrange(5, 95)).scaleb(-1)
    coupon = Decimal(stream.randrange(100, 900, 5)).scaleb(-2)
    term, year = stream.randint(2, 12), stream.randint(2015, 2023)
    repaid, repaid_rate = Decimal(stream.randrange(40, 900, 5)), Decimal(stream.randrange(100, 900, 5)).scaleb(-2)
    stated = [
        (
            f"In {year} {company} issued notes with an aggregate principal amount of {currency} "
            f"{format_amount(principal)} million, at a total issue cost of {currency} {format_amount(cost)} million.",
            [("principal", format_amount(principal)), ("issue cost", format_amount(cost)), ("issue year", str(year))],
        ),
        (
            f"The notes of {company} bear simple interest at {coupon}% a year and fall due {term} years after issue.",
            [("coupon", str(coupon)), ("term", str(term))],
        ),
        (f"A loan of {currency} {format_amount(repaid)} million at {repaid_rate}% was repaid before the issue.", []),
        (f"The notes of {company} are guaranteed by {bank}.", [("guarantor", bank)]),
    ]
    return write_block(f"Notes issued by {company}", company, stated, facts)


def _counterparties(stream: random.Random, company: str, bank: str, firm: str, facts: Facts) -> str:
    """Facts of the bank and the audit firm; the company that they serve is not named here."""
    bank_city, firm_city = stream.sample(CITIES, 2)
    bank_head, firm_head = make_person(stream), make_person(stream)
    bank_block = write_block(
        f"About {bank}",
        bank,
        [
            (f"{bank} has its head office in {bank_city}.", [("bank city", bank_city)]),
            (f"The chief executive of {bank} is {bank_head}.", [("bank head", bank_head)]),
        ],
        facts,
    )
    firm_block = write_block(
        f"About {firm}",
        firm,
        [
            (f"{firm} works from offices in {firm_city}.", [("firm city", firm_city)]),
            (f"The managing partner of {firm} is {firm_head}.", [("firm head", firm_head)]),
        ],
        facts,
    )
    return f"{bank_block}\n\n{firm_block}"


def _accounts(stream: random.Random, company: str, currency: str, facts: Facts) -> str:
    heading = f"Accounts of {company} ({currency} million) | " + " | ".join(YEARS)
    lines = [heading]
    for item in LINE_ITEMS:
        usual = stream.randrange(4000, 40000) if item in ("Revenue", "Cost of sales") else stream.randrange(300, 4000)
        tenths = [usual * stream.randint(75, 130) // 100 for _ in YEARS]
        amounts = [format_amount(Decimal(amount).scaleb(-1)) for amount in tenths]
        line = f"{item} | " + " | ".join(amounts)
        lines.append(line)
        for year, amount in zip(YEARS, amounts, strict=True):
            facts[item, year] = Fact(item, company, year, amount, line, heading)
    return "\n".join(lines)
