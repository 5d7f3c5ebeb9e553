"""The clauses of a facility agreement and of a lease. Each sentence that states a term names its agreement."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import NamedTuple

from hybridflow.data.synth.hard_contract_words import MONTHS
from hybridflow.data.synth.hard_facts import format_amount
from hybridflow.data.synth.hard_words import CITIES


class Clause(NamedTuple):
    """A sentence of an agreement."""

    text: str
    """With {} where the value stands."""
    name: str = ""
    """Name of the fact that it states; empty for a decoy."""
    value: str = ""
    amended: str = ""
    """Another value, which an amendment may put in its place; empty where none may."""


def list_facility_parts(
    stream: random.Random, title: str, currency: str, parties: tuple[str, str, str], laws: Sequence[str]
) -> dict[str, list[Clause]]:
    """Part -> clauses of a facility agreement: (borrower, guarantor, lender), governed by the first law."""
    borrower, guarantor, lender = parties
    repaid, margin = _amount(stream, 5, 900, 5), _rate(stream)
    return {
        "parties": [
            Clause(f"{title} is made between {borrower} as borrower and {{}} as lender.", "lender", lender),
            _signing(stream, title),
            Clause(
                f"The borrower has repaid an older loan of {currency} {repaid} million, which bore {margin}% a year."
            ),
        ],
        "definitions": [
            _term(
                stream,
                f"Commitment means the principal of {currency} {{}} million, lent in full on the signing of {title}.",
                "principal",
                lambda: _amount(stream, 40, 1200, 5),
            ),
            _term(
                stream,
                f"The loan under {title} falls due in one sum {{}} years after signing.",
                "term",
                lambda: str(stream.randint(3, 12)),
            ),
        ],
        "schedule of charges": [
            _term(
                stream,
                f"The borrower pays an arrangement fee of {currency} {{}} million under {title} on signing.",
                "fee",
                lambda: str(Decimal(stream.randrange(5, 95)).scaleb(-1)),
            ),
            _term(
                stream,
                f"The loan under {title} bears simple interest at {{}}% a year.",
                "rate",
                lambda: _rate(stream),
            ),
            Clause(f"Sums paid late bear a further {_rate(stream)}% a year, which is not part of the interest above."),
        ],
        "general terms": [
            *_law(title, laws),
            _term(
                stream,
                f"The borrower may cancel {title} on {{}} days' notice.",
                "notice",
                lambda: str(stream.randrange(10, 185, 5)),
            ),
            Clause(f"The debts of the borrower under {title} are guaranteed by {{}}.", "guarantor", guarantor),
        ],
    }


def list_lease_parts(
    stream: random.Random, title: str, currency: str, parties: tuple[str, str, str], laws: Sequence[str]
) -> dict[str, list[Clause]]:
    """Part -> clauses of a lease: (tenant, landlord, guarantor), governed by the first law."""
    tenant, landlord, guarantor = parties
    city, city_before = stream.sample(CITIES, 2)
    return {
        "parties": [
            Clause(f"{title} is made between {{}} as landlord and {tenant} as tenant.", "landlord", landlord),
            _signing(stream, title),
        ],
        "premises and term": [
            Clause(f"The premises let under {title} are in {{}}.", "premises", city),
            Clause(f"The tenant gives up its offices in {city_before}, for which it paid a lower rent."),
            _term(stream, f"{title} runs for {{}} years from signing.", "term", lambda: str(stream.randint(2, 15))),
        ],
        "schedule of payments": [
            _term(
                stream,
                f"The monthly rent under {title} is {currency} {{}}.",
                "monthly rent",
                lambda: _amount(stream, 2000, 90000, 250),
            ),
            Clause(f"Heating is charged apart, at {currency} {_amount(stream, 100, 1900, 10)} a month."),
            _term(
                stream,
                f"The tenant pays a deposit of {currency} {{}} under {title}.",
                "deposit",
                lambda: _amount(stream, 5000, 250000, 500),
            ),
        ],
        "general terms": [
            *_law(title, laws),
            _term(
                stream,
                f"Either party may end {title} on {{}} months' notice.",
                "notice",
                lambda: str(stream.randint(2, 18)),
            ),
            Clause(f"The debts of the tenant under {title} are guaranteed by {{}}.", "guarantor", guarantor),
        ],
    }


def _signing(stream: random.Random, title: str) -> Clause:
    day = f"{stream.randint(1, 28)} {stream.choice(MONTHS)}"
    return Clause(f"{title} was signed on {day} {{}}.", "signing year", str(stream.randint(2008, 2023)))


def _law(title: str, laws: Sequence[str]) -> list[Clause]:
    return [
        Clause(f"{title} is governed by the law of {{}}.", "law", laws[0]),
        Clause(f"A draft of {title} had named the law of {laws[1]}, but it was not signed."),
    ]


def _term(stream: random.Random, text: str, name: str, draw: Callable[[], str]) -> Clause:
    """A clause that an amendment may replace with another value of the same draw."""
    value = amended = draw()
    while amended == value:
        amended = draw()
    return Clause(text, name, value, amended)


def _amount(stream: random.Random, least: int, bound: int, step: int) -> str:
    return format_amount(Decimal(stream.randrange(least, bound, step)))


def _rate(stream: random.Random) -> str:
    return str(Decimal(stream.randrange(100, 900, 5)).scaleb(-2))
