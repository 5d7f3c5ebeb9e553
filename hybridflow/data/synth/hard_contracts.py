"""The facts of a contract bundle: facility agreements and leases in numbered clauses, as text blocks.

The parts of an agreement are blocks of their own, so its facts lie apart in the document. A term is stated once, or
twice where an amendment replaces the clause: then the amended value holds, and the clause before is a decoy. The courts
for each governing law stand on a page that all agreements of the bundle share.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from hybridflow.data.synth.hard_clauses import Clause, list_facility_parts, list_lease_parts
from hybridflow.data.synth.hard_contract_words import COURTS, LENDER_FORMS, PARTY_FORMS, PLACES
from hybridflow.data.synth.hard_facts import Fact, Facts, make_names, make_person, write_block
from hybridflow.data.synth.hard_words import ACTIVITIES, CITIES, CURRENCIES

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
