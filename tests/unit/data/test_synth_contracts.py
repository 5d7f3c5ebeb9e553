"""Contracts of the hard tier: answers are found again from question and document, and nothing contradicts them."""

import re
from collections import Counter
from collections.abc import Callable
from decimal import Decimal

import pytest
from pydantic import ValidationError

from hybridflow.data.schema import Row
from hybridflow.data.streams import derive_stream
from hybridflow.data.synth import SynthSpec, generate_rows
from hybridflow.data.synth.hard_contracts import generate_contracts

SPEC = SynthSpec(tier="hard", doc_tokens=3000, num_records=4, num_train=480, num_test=4)
ROWS = generate_rows(SPEC, "train", seed=23)
CONTRACT_ROWS = [row for row in ROWS if re.search(r" (FA|LC)-\d{4}", str(row.extra_info["facts"]))]

STATED = {
    "registered office": "The registered office of {} is in (.+?)[.]",
    "chair": "The board of {} is chaired by (.+?)[.]",
    "auditor": "The accounts of {} for 2024 were audited by (.+?)[.]",
    "principal": "In [0-9]+ {} issued notes with an aggregate principal amount of [A-Z]+ (.+?) million",
    "issue cost": "In [0-9]+ {} issued notes .+?, at a total issue cost of [A-Z]+ (.+?) million",
    "issue year": "In ([0-9]+) {} issued notes",
    "coupon": "The notes of {} bear simple interest at (.+?)%",
    "term": "The notes of {} .+? fall due (.+?) years after issue",
    "guarantor": "The notes of {} are guaranteed by (.+?)[.]",
    "bank city": "{} has its head office in (.+?)[.]",
    "bank head": "The chief executive of {} is (.+?)[.]",
    "firm city": "{} works from offices in (.+?)[.]",
    "firm head": "The managing partner of {} is (.+?)[.]",
    "court": "Claims under the law of {} are brought before the (.+?)[.]",
    "agreement": "((?:Facility Agreement FA|Lease Contract LC)-[0-9]+) is made between .*{} as (?:borrower|tenant)",
}
"""Fact -> where a document states it of a subject; the group is the value."""
STATED_BY_CONTRACTS = {
    "lender": "{} is made between .+ as borrower and (.+?) as lender",
    "landlord": "{} is made between (.+?) as landlord",
    "signing year": "{} was signed on [0-9]+ [A-Z][a-z]+ ([0-9]+)[.]",
    "principal": "principal of [A-Z]+ (.+?) million, lent in full on the signing of {}[.]",
    "rate": "The loan under {} bears simple interest at (.+?)% a year",
    "fee": "arrangement fee of [A-Z]+ (.+?) million under {} ",
    "term": "{} (?:falls due in one sum|runs for) (.+?) years (?:after|from) signing",
    "law": "{} is governed by the law of (.+?)[.]",
    "notice": "(?:cancel|end) {} on (.+?) (?:days|months)' notice",
    "guarantor": "under {} are guaranteed by (.+?)[.]",
    "premises": "The premises let under {} are in (.+?)[.]",
    "monthly rent": "The monthly rent under {} is [A-Z]+ (.+?)[.]",
    "deposit": "deposit of [A-Z]+ (.+?) under {}[.]",
}
Terms = Callable[[str], Decimal]
SUMS: dict[str, Callable[[Terms, int], Decimal]] = {
    "arrangement fee and the first year's interest": lambda of, _: of("fee") + of("principal") * of("rate") / 100,
    "interest .* over its first ([0-9]+) years": lambda of, years: of("principal") * of("rate") * years / 100,
    "interest .* bear from signing until it falls due": lambda of, _: of("principal") * of("rate") * of("term") / 100,
    "from the day of signing to the same day of ([0-9]+)": lambda of, year: (
        of("principal") * of("rate") * (year - of("signing year")) / 100
    ),
    "sum of the principal .* and its simple interest from signing until it falls due": lambda of, _: (
        of("principal") * (100 + of("rate") * of("term")) / 100
    ),
    "falls on the notice period": lambda of, _: of("monthly rent") * of("notice"),
    "runs for its whole term": lambda of, _: of("monthly rent") * of("term") * 12,
    "sum of the deposit and the first year's rent": lambda of, _: of("deposit") + of("monthly rent") * 12,
}
"""Subject of a question -> how a reader works it out."""


def document_of(row: Row) -> str:
    return row.prompt[0]["content"].split("<text>\n")[1].split("\n</text>")[0]


def find_stated(document: str, name: str, subject: str) -> list[tuple[str, str]]:
    """(value, line) of each place that states `name` of `subject`."""
    is_contract = re.search(r" (FA|LC)-\d{4}$", subject) is not None
    pattern = (STATED_BY_CONTRACTS if is_contract else STATED)[name].replace("{}", re.escape(subject))
    found = [(line, re.search(pattern, line)) for line in document.split("\n")]
    assert all(len(re.findall(pattern, line)) <= 1 for line, _ in found)
    return [(match[1], line) for line, match in found if match]


def find_in_force(document: str, name: str, subject: str) -> str:
    """The value after amendments."""
    stated = find_stated(document, name, subject)
    if len(stated) > 1:
        stated = [(value, line) for value, line in stated if re.match(r"Clause [0-9.]+ of .* is replaced", line)]
    assert len(stated) == 1
    return stated[0][0]


def test_nothing_contradicts_a_fact() -> None:
    """A fact is stated once, or twice where an amendment replaces the clause of its number."""
    num_replaced = 0
    for row in ROWS:
        document = document_of(row)
        for fact in row.extra_info["facts"]:
            if fact["period"]:
                continue
            assert find_in_force(document, fact["name"], fact["subject"]) == fact["value"]
            values = [value for value, _ in find_stated(document, fact["name"], fact["subject"])]
            if not fact["replaced"]:
                assert values == [fact["value"]]
                continue
            num_replaced += 1
            clause = fact["replaced"].split(" ")[0]
            opening = f"Clause {clause} of {fact['subject']} is replaced as from the day of signing and reads: "
            assert fact["text"].startswith(opening) and document.count(f"\n{fact['replaced']}") == 1
            assert len(values) == len(set(values)) == 2 and fact["value"] in values
    assert num_replaced > 40


def test_a_reader_works_out_the_same_number() -> None:
    asked: Counter[str] = Counter()
    for row in CONTRACT_ROWS:
        if row.ability != "doc-math":
            continue
        question, document = row.extra_info["question"], document_of(row)
        title = re.findall(r"Facility Agreement FA-\d{4}|Lease Contract LC-\d{4}", question)
        matches = [(key, match) for key in SUMS if (match := re.search(key, question))]
        assert len(title) == len(matches) == 1
        key, match = matches[0]

        def read(name: str, document: str = document, title: str = title[0]) -> Decimal:
            return Decimal(find_in_force(document, name, title).replace(",", ""))

        value = SUMS[key](read, int(match[1]) if match.lastindex else 0)
        gold = row.reward_model.ground_truth.removeprefix("Therefore, the answer is ").removesuffix(".")
        assert Decimal(gold) == value
        currency = re.search(r" in (?:millions of )?([A-Z]{3}), without the unit\.", question)
        assert currency and re.search(rf"(principal of|monthly rent under {title[0]} is) {currency[1]} ", document)
        asked[key] += 1
    assert set(asked) == set(SUMS)


def test_every_kind_is_asked_about_both_contracts() -> None:
    asked = Counter(
        (row.extra_info["kind"], " FA-" in str(row.extra_info["facts"]), row.extra_info["hops"])
        for row in CONTRACT_ROWS
    )
    for kind, hops in [("lookup", 1), ("two_hop", 2), ("arithmetic", 2), ("choice", 1), ("choice", 2)]:
        assert asked[kind, True, hops] and asked[kind, False, hops]
    assert asked["arithmetic", True, 3]
    assert all(hops == 2 for kind, _, hops in asked if kind == "two_hop")


def test_reports_and_contracts_and_both() -> None:
    layouts = Counter(row.extra_info["document"] for row in ROWS)
    assert set(layouts) == {"report", "contracts", "mixed"} and min(layouts.values()) > 120
    for row in ROWS:
        document, layout = document_of(row), row.extra_info["document"]
        num_reports = document.count("Governance of ")
        num_contracts = len(re.findall(r"^(?:Facility|Lease) .+, part 1: parties$", document, re.MULTILINE))
        assert num_reports + num_contracts == 4
        assert (num_reports > 0, num_contracts > 0) == (layout != "contracts", layout != "report")


def test_contracts_fit_the_room_that_a_record_has() -> None:
    for num_contracts in (1, 4):
        for seed in range(200):
            contracts, courts = generate_contracts(derive_stream("test", seed), num_contracts)
            blocks = [courts, *(block for contract in contracts for block in contract.blocks)]
            assert sum(len(block) + 2 for block in blocks) <= 2400 * num_contracts


def test_one_record_is_never_mixed() -> None:
    sizes = {"doc_tokens": 600, "num_records": 1, "num_train": 40, "num_test": 0}
    rows = generate_rows(SynthSpec.model_validate({"tier": "hard", **sizes}), "train", seed=5)
    assert {row.extra_info["document"] for row in rows} == {"report", "contracts"}
    with pytest.raises(ValidationError, match="mixed with 2 records or more"):
        SynthSpec.model_validate({"tier": "hard", "documents": ("mixed",), **sizes})
