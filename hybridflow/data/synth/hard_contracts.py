"""Facts of a hard-tier contract bundle, agreements and leases in numbered clauses, and the text blocks that state them.

The parts of an agreement are blocks of their own, so its facts lie apart in the document. A term is stated once, or
twice where an amendment replaces the clause: then the amended value holds, and the clause before is a decoy. The courts
for each governing law stand on a page that all agreements of the bundle share. Each sentence
that states a term names its agreement.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import NamedTuple

from hybridflow.data.synth.hard_contract_words import COURTS, LENDER_FORMS, MONTHS, PARTY_FORMS, PLACES
from hybridflow.data.synth.hard_issuers import Fact, Facts, format_amount, make_names, make_person, write_block
from hybridflow.data.synth.hard_words import ACTIVITIES, CITIES, CURRENCIES


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


COURTS_HEADING = "Courts for the agreements of this bundle"
AMENDED_SHARE = 0.8
"""Share of the agreements that were amended, in one to three clauses."""


class Contract(NamedTuple):
    """An agreement, its facts by (name, period), and the blocks that state them."""

    title: str
    is_lease: bool
    company: str
    """Borrower or tenant; party to this agreement alone."""
    currency: str
    facts: Facts
    blocks: list[str]

    def fact(self, name: str) -> Fact:
        return self.facts[name, ""]


def generate_contracts(stream: random.Random, num_contracts: int) -> tuple[list[Contract], str]:
    """Agreements whose titles, companies and banks occur once each; and the page of courts."""
    numbers = stream.sample(range(1000, 10000), num_contracts)
    parties = make_names(stream, 2 * num_contracts, lambda: f"{stream.choice(ACTIVITIES)} {stream.choice(PARTY_FORMS)}")
    banks = make_names(stream, num_contracts, lambda: stream.choice(LENDER_FORMS))
    laws = [stream.sample(PLACES, 2) for _ in range(num_contracts)]
    contracts = [
        _generate_contract(stream, number, (parties[2 * index], parties[2 * index + 1], banks[index]), laws[index])
        for index, number in enumerate(numbers)
    ]
    return contracts, _write_courts(stream, contracts, {place for pair in laws for place in pair})


def _generate_contract(
    stream: random.Random, number: int, parties: tuple[str, str, str], laws: Sequence[str]
) -> Contract:
    """An agreement of (company, other company, bank), under the first of two laws; a draft had named the second."""
    is_lease = stream.random() < 0.5
    title = f"Lease Contract LC-{number}" if is_lease else f"Facility Agreement FA-{number}"
    currency = stream.choice(CURRENCIES)
    parts = (list_lease_parts if is_lease else list_facility_parts)(stream, title, currency, parties, laws)
    company, _, bank = parties
    facts: Facts = {}
    blocks = _write_parts(stream, title, parts, facts)
    first = facts["landlord" if is_lease else "lender", ""]
    facts["agreement", ""] = first._replace(name="agreement", subject=company, value=title)
    stated = [
        (f"{bank} has its head office in {(city := stream.choice(CITIES))}.", [("bank city", city)]),
        (f"The chief executive of {bank} is {(head := make_person(stream))}.", [("bank head", head)]),
    ]
    blocks.append(write_block(f"About {bank}", bank, stated, facts))
    return Contract(title, is_lease, company, currency, facts, blocks)


def _write_parts(stream: random.Random, title: str, parts: dict[str, list[Clause]], facts: Facts) -> list[str]:
    """A block per part, with numbered clauses; and one for the amendment, if there is one."""
    amendable = [clause.name for clauses in parts.values() for clause in clauses if clause.amended]
    num_amended = stream.randint(1, 3) if stream.random() < AMENDED_SHARE else 0
    amended = set(stream.sample(amendable, num_amended))
    amendment = f"Amendment No. 1 to {title}"
    blocks: list[str] = []
    amendments: list[str] = []
    for part, (name, clauses) in enumerate(parts.items(), start=1):
        heading = f"{title}, part {part}: {name}"
        lines = [heading]
        for place, clause in enumerate(clauses, start=1):
            text = clause.text.format(clause.value)
            lines.append(f"{part}.{place} {text}")
            if clause.name in amended:
                reads = clause.text.format(clause.amended)
                change = f'Clause {part}.{place} of {title} is replaced as from the day of signing and reads: "{reads}"'
                amendments.append(change)
                facts[clause.name, ""] = Fact(clause.name, title, "", clause.amended, change, amendment, lines[-1])
            elif clause.name:
                facts[clause.name, ""] = Fact(clause.name, title, "", clause.value, text, heading)
        blocks.append("\n".join(lines))
    if amendments:
        blocks.append("\n".join([amendment, *amendments]))
    return blocks


def _write_courts(stream: random.Random, contracts: list[Contract], places: set[str]) -> str:
    """The page that names a court for each place; every contract gets the fact of the law that governs it."""
    courts: dict[str, Fact] = {}
    order = sorted(places)
    stream.shuffle(order)
    for place, city in zip(order, stream.sample(CITIES, len(order)), strict=True):
        court = f"{stream.choice(COURTS)} of {city}"
        text = f"Claims under the law of {place} are brought before the {court}."
        courts[place] = Fact("court", place, "", court, text, COURTS_HEADING)
    for contract in contracts:
        contract.facts["court", ""] = courts[contract.fact("law").value]
    return "\n".join([COURTS_HEADING, *(fact.text for fact in courts.values())])
