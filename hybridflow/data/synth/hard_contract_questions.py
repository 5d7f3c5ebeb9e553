"""Questions on contracts, and their gold answers, computed from the facts with exact decimals."""

from __future__ import annotations

import random
from collections.abc import Callable
from decimal import Decimal

from hybridflow.data.synth.hard_contract_words import COURTS, PLACES
from hybridflow.data.synth.hard_contracts import Contract
from hybridflow.data.synth.hard_questions import HardKind, Question, add_choices, format_answer, read_number
from hybridflow.data.synth.hard_words import CITIES

_SHARED_LOOKUPS = {
    "law": "The law of which place governs {agreement}?",
    "signing year": "In which year was {agreement} signed?",
}
_FACILITY_LOOKUPS = _SHARED_LOOKUPS | {
    "lender": "Which bank is the lender under {agreement}?",
    "guarantor": "Which company guarantees the debts of the borrower under {agreement}?",
    "notice": "On how many days' notice may the borrower cancel {agreement}? Give the number.",
    "term": "How many years after signing does the loan under {agreement} fall due? Give the number.",
}
_LEASE_LOOKUPS = _SHARED_LOOKUPS | {
    "landlord": "Which company is the landlord under {agreement}?",
    "guarantor": "Which bank guarantees the debts of the tenant under {agreement}?",
    "notice": "On how many months' notice may a party end {agreement}? Give the number.",
    "premises": "In which city are the premises let under {agreement}?",
    "term": "For how many years from signing does {agreement} run? Give the number.",
}
_COURT = "Before which court are claims brought under the law that governs {agreement}?"
_FACILITY_HOPS = {
    ("law", "court"): _COURT,
    ("lender", "bank city"): "In which city is the head office of the bank that is the lender under {agreement}?",
    ("lender", "bank head"): "Who is the chief executive of the bank that is the lender under {agreement}?",
}
_LEASE_HOPS = {
    ("law", "court"): _COURT,
    (
        "guarantor",
        "bank city",
    ): "In which city is the head office of the bank that guarantees the debts of the tenant under {agreement}?",
    (
        "guarantor",
        "bank head",
    ): "Who is the chief executive of the bank that guarantees the debts of the tenant under {agreement}?",
}
_MILLIONS = " Give the number in millions of {currency}, without the unit."
_UNITS = " Give the number in {currency}, without the unit."
_SPAN = "How much simple interest does the loan under {agreement} bear "
_BY_COMPANY_SHARE = 0.4
"""Share of the two-hop questions that name the company and leave its agreement to be found."""


def generate_contract_question(stream: random.Random, contracts: list[Contract], kind: HardKind) -> Question:
    """A question of `kind` about one of the contracts."""
    contract = stream.choice(contracts)
    if kind == "lookup":
        return _lookup(contract, stream.choice(list(_lookups(contract))))
    if kind == "two_hop":
        if stream.random() < _BY_COMPANY_SHARE:
            return _by_company(stream, contract)
        return _two_hop(contract, *stream.choice(list(_hops(contract))))
    if kind == "arithmetic":
        return stream.choice(_LEASE_SUMS if contract.is_lease else _FACILITY_SUMS)(stream, contract)
    return _choice(stream, contract, contracts)


def _lookups(contract: Contract) -> dict[str, str]:
    return _LEASE_LOOKUPS if contract.is_lease else _FACILITY_LOOKUPS


def _hops(contract: Contract) -> dict[tuple[str, str], str]:
    return _LEASE_HOPS if contract.is_lease else _FACILITY_HOPS


def _lookup(contract: Contract, name: str) -> Question:
    fact = contract.fact(name)
    return Question(_lookups(contract)[name].format(agreement=contract.title), fact.value, "copy", [fact], [])


def _by_company(stream: random.Random, contract: Contract) -> Question:
    """A look-up in another part than the one that names the company."""
    agreement = contract.fact("agreement")
    name = stream.choice([name for name in _lookups(contract) if contract.fact(name).heading != agreement.heading])
    role = "lease contract with the tenant" if contract.is_lease else "facility agreement of the borrower"
    facts = [agreement, contract.fact(name)]
    text = _lookups(contract)[name].format(agreement=f"the {role} {contract.company}")
    return Question(text, facts[1].value, "copy", facts, [])


def _two_hop(contract: Contract, first: str, second: str) -> Question:
    facts = [contract.fact(first), contract.fact(second)]
    text = _hops(contract)[first, second].format(agreement=contract.title)
    return Question(text, facts[1].value, "copy", facts, [])


def _sum(contract: Contract, text: str, answer: Decimal, formula: str, names: list[str]) -> Question:
    """An arithmetic question; `formula` is made of the names of the facts and numbers that the question gives."""
    text += _UNITS if contract.is_lease else _MILLIONS
    text = text.format(agreement=contract.title, currency=contract.currency)
    return Question(text, format_answer(answer), formula, [contract.fact(name) for name in names], [])


def _read(contract: Contract, *names: str) -> list[Decimal]:
    return [read_number(contract.fact(name)) for name in names]


def _fee_and_interest(_stream: random.Random, contract: Contract) -> Question:
    principal, rate, fee = _read(contract, *(names := ["principal", "rate", "fee"]))
    text = "What is the sum of the arrangement fee and the first year's interest under {agreement}?"
    return _sum(contract, text, principal * rate / 100 + fee, "principal * rate / 100 + fee", names)


def _interest_over_term(_stream: random.Random, contract: Contract) -> Question:
    principal, rate, term = _read(contract, *(names := ["principal", "rate", "term"]))
    text = _SPAN + "from signing until it falls due?"
    return _sum(contract, text, principal * rate / 100 * term, "principal * rate / 100 * term", names)


def _interest_over_years(stream: random.Random, contract: Contract) -> Question:
    principal, rate, term = _read(contract, "principal", "rate", "term")
    years = stream.randint(2, int(term))
    text = _SPAN + f"over its first {years} years?"
    formula = f"principal * rate / 100 * {years}"
    return _sum(contract, text, principal * rate / 100 * years, formula, ["principal", "rate"])


def _interest_until_year(stream: random.Random, contract: Contract) -> Question:
    principal, rate, term, signed = _read(contract, "principal", "rate", "term", "signing year")
    year = int(signed) + stream.randint(1, int(term))
    text = _SPAN + f"from the day of signing to the same day of {year}?"
    formula = f"principal * rate / 100 * ({year} - signing year)"
    answer = principal * rate / 100 * (year - signed)
    return _sum(contract, text, answer, formula, ["principal", "rate", "signing year"])


def _repayment(_stream: random.Random, contract: Contract) -> Question:
    principal, rate, term = _read(contract, *(names := ["principal", "rate", "term"]))
    text = "What is the sum of the principal under {agreement} and its simple interest from signing until it falls due?"
    answer = principal + principal * rate / 100 * term
    return _sum(contract, text, answer, "principal + principal * rate / 100 * term", names)


def _rent_over_notice(_stream: random.Random, contract: Contract) -> Question:
    rent, months = _read(contract, *(names := ["monthly rent", "notice"]))
    text = "How much rent, without heating, falls on the notice period of {agreement}?"
    return _sum(contract, text, rent * months, "monthly rent * notice", names)


def _rent_over_term(_stream: random.Random, contract: Contract) -> Question:
    rent, term = _read(contract, *(names := ["monthly rent", "term"]))
    text = "How much rent, without heating, does {agreement} bring if it runs for its whole term?"
    return _sum(contract, text, rent * 12 * term, "monthly rent * 12 * term", names)


def _deposit_and_rent(_stream: random.Random, contract: Contract) -> Question:
    deposit, rent = _read(contract, *(names := ["deposit", "monthly rent"]))
    text = "What is the sum of the deposit and the first year's rent, without heating, under {agreement}?"
    return _sum(contract, text, deposit + rent * 12, "deposit + monthly rent * 12", names)


_Sums = tuple[Callable[[random.Random, Contract], Question], ...]
_FACILITY_SUMS: _Sums = (_fee_and_interest, _interest_over_term, _interest_over_years, _interest_until_year, _repayment)
_LEASE_SUMS: _Sums = (_rent_over_notice, _rent_over_term, _deposit_and_rent)


def _choice(stream: random.Random, contract: Contract, contracts: list[Contract]) -> Question:
    """A question for a place, a court or a city, with those of other contracts as wrong answers."""
    asked = stream.choice(("law", "court", "bank city"))
    stated = {other.fact(asked).value for other in contracts}
    if asked == "law":
        return add_choices(stream, _lookup(contract, asked), stated, set(PLACES))
    if asked == "court":
        courts = {f"{court} of {city}" for court in COURTS for city in CITIES}
        return add_choices(stream, _two_hop(contract, "law", asked), stated, courts)
    bank = "guarantor" if contract.is_lease else "lender"
    return add_choices(stream, _two_hop(contract, bank, asked), stated, set(CITIES))
