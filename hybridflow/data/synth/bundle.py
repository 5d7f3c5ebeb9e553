"""Long tier: bundles of several documents, whose questions need facts of more than one of them.

A bundle has an annual report for each company, agreements, and a register of the banks, firms and courts that they
name. The documents are those of the hard tier, parted; questions across them are in `bundle_questions`. Whole prompts
have the length that is asked for, in a band from the shortest to the longest.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from hybridflow.data.chat_template import build_answer, build_prompt
from hybridflow.data.schema import RewardModel, Row
from hybridflow.data.synth.bundle_questions import BundleKind, generate_bundle_question
from hybridflow.data.synth.hard import FILLERS, MAX_RECORDS, MIN_TOKENS_PER_RECORD, assemble, describe_facts
from hybridflow.data.synth.hard_contracts import Contract, generate_contracts
from hybridflow.data.synth.hard_issuers import Issuer, generate_issuers

KINDS: tuple[BundleKind, ...] = ("two_hop", "arithmetic", "two_hop_arithmetic")
"""Taken in turn."""
SOURCES: dict[BundleKind, tuple[str, str]] = {
    "two_hop": ("synth_bundle_two_hop", "doc-qa"),
    "arithmetic": ("docmath_synth_bundle", "doc-math"),
    "two_hop_arithmetic": ("docmath_synth_bundle_two_hop", "doc-math"),
}
"""Question kind -> data_source and ability."""
MIN_RECORDS = 3
"""Two companies to compare, and an agreement."""
SLACK_CHARS = 300
"""A prompt is at most so much shorter than was drawn, as paragraphs are whole sentences."""


class Document(NamedTuple):
    """One document of a bundle, before it gets its length."""

    title: str
    blocks: list[str]


def check_bundle_size(doc_tokens: int, num_records: int) -> str | None:
    """Why there is no bundle of this size, or None if there is one."""
    if not MIN_RECORDS <= num_records <= MAX_RECORDS:
        return f"num_records must be {MIN_RECORDS} .. {MAX_RECORDS} in the long tier; got {num_records}"
    least = (num_records + 1) * MIN_TOKENS_PER_RECORD
    if doc_tokens < least:
        most = doc_tokens // MIN_TOKENS_PER_RECORD - 1
        advice = f"raise doc_tokens to {least}" + (f", or lower num_records to {most}" if most >= MIN_RECORDS else "")
        return f"doc_tokens={doc_tokens} has no room for {num_records} documents: {advice}"
    return None


def generate_bundle_row(stream: random.Random, index: int, split: str, num_chars: int, num_records: int) -> Row:
    """One row whose prompt has `num_chars` characters, or at most SLACK_CHARS fewer.

    `extra_info` is that of the hard tier; `document` is "bundle", and `hops` counts the documents that hold the facts.
    """
    kind = KINDS[index % len(KINDS)]
    issuers = generate_issuers(stream, stream.randint(2, num_records - 1))
    contracts, courts = generate_contracts(stream, num_records - len(issuers))
    documents = _list_documents(issuers, contracts, courts)
    question = generate_bundle_question(stream, issuers, contracts, kind)
    text = _write(stream, documents, num_chars - len(build_prompt("", question.text)))
    data_source, ability = SOURCES[kind]
    return Row(
        data_source=data_source,
        prompt=[{"role": "user", "content": build_prompt(text, question.text)}],
        ability=ability,
        reward_model=RewardModel(style="rule", ground_truth=build_answer(question.answer)),
        extra_info={
            "index": index,
            "split": split,
            "tier": "long",
            "document": "bundle",
            "kind": kind,
            "hops": sum(any(_is_in(fact.heading, document) for fact in question.facts) for document in documents),
            "formula": question.formula,
            "question": question.text,
            "facts": describe_facts(question, text),
        },
    )


def _list_documents(issuers: list[Issuer], contracts: list[Contract], courts: str) -> list[Document]:
    """A report of each company without its counterparties, each agreement without its bank; these in the register."""
    reports = [Document(f"Annual report 2024 of {one.name}", one.blocks[:-1]) for one in issuers]
    agreements = [Document(one.title, [block for block in one.blocks if not _is_of_bank(block)]) for one in contracts]
    named = [one.blocks[-1] for one in issuers] + [
        block for one in contracts for block in one.blocks if _is_of_bank(block)
    ]
    return [*reports, *agreements, Document("Register of banks, audit firms and courts", [*named, courts])]


def _is_of_bank(block: str) -> bool:
    return block.startswith("About ")


def _is_in(heading: str, document: Document) -> bool:
    return any(f"{heading}\n" in f"{block}\n" for block in document.blocks)


def _write(stream: random.Random, documents: list[Document], num_chars: int) -> str:
    """The documents, numbered, in random order and of random shares of the length."""
    order = list(documents)
    stream.shuffle(order)
    least = [len(document.title) + 20 + sum(len(block) + 2 for block in document.blocks) for document in order]
    weights = [stream.uniform(0.5, 1.5) for _ in order]
    written: list[str] = []
    room = num_chars
    for place, document in enumerate(order):
        filler = max(room - sum(least[place:]), 0) * weights[place] / sum(weights[place:])
        heading = f"Document {place + 1}: {document.title}\n\n"
        fillers = FILLERS["contracts" if document.title.startswith(("Facility", "Lease")) else "report"]
        body = assemble(stream, document.blocks, fillers, least[place] + int(filler) - len(heading) - 2)
        written.append(heading + body)
        room -= len(written[-1]) + 2
    return "\n\n".join(written)
