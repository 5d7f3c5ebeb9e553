"""Hard tier: long reports and contract bundles; questions of one and two hops, arithmetic and four choices.

Reports come from `hard_issuers` and `hard_questions`, contracts from `hard_contracts` and `hard_contract_questions`;
here they become a document.
Length counts 4 characters as a token: near what large tokenizers make of English prose.
"""

from __future__ import annotations

import random
from typing import Literal

from hybridflow.data.chat_template import build_answer, build_choice_answer, build_choice_prompt, build_prompt
from hybridflow.data.schema import RewardModel, Row
from hybridflow.data.synth.hard_contract_questions import generate_contract_question
from hybridflow.data.synth.hard_contract_words import CONTRACT_FILLERS
from hybridflow.data.synth.hard_contracts import generate_contracts
from hybridflow.data.synth.hard_issuers import generate_issuers
from hybridflow.data.synth.hard_questions import HardKind, Question, generate_question
from hybridflow.data.synth.hard_words import FILLER_PATTERNS, FILLER_SLOTS

HardDocument = Literal["report", "contracts", "mixed"]

CHARACTERS_PER_TOKEN = 4
MIN_TOKENS_PER_RECORD = 600
"""Room that the blocks of an issuer, or of an agreement, need at most."""
MAX_RECORDS = 128
"""Made-up bank names do not last for many more."""

FILLERS: dict[HardDocument, tuple[str, ...]] = {
    "report": FILLER_PATTERNS,
    "contracts": CONTRACT_FILLERS,
    "mixed": FILLER_PATTERNS + CONTRACT_FILLERS,
}
SOURCES: dict[HardKind, tuple[str, str]] = {
    "lookup": ("synth_lookup", "doc-qa"),
    "two_hop": ("synth_two_hop", "doc-qa"),
    "arithmetic": ("docmath_synth", "doc-math"),
    "choice": ("long_toc_choices_synth", "doc-mc"),
}
"""Question kind -> data_source and ability."""


def check_hard_size(doc_tokens: int, num_records: int) -> str | None:
    """Why no document of this size exists, or None if it does."""
    if num_records > MAX_RECORDS:
        return f"num_records must be 1 .. {MAX_RECORDS} in the hard tier; got {num_records}"
    least = num_records * MIN_TOKENS_PER_RECORD
    if doc_tokens < least:
        most = doc_tokens // MIN_TOKENS_PER_RECORD
        advice = f"raise doc_tokens to {least}" + (f", or lower num_records to {most}" if most else "")
        return f"doc_tokens={doc_tokens} has no room for {num_records} records: {advice}"
    return None


def generate_hard_row(
    stream: random.Random,
    index: int,
    split: str,
    doc_tokens: int,
    num_records: int,
    kind: HardKind,
    layout: HardDocument,
) -> Row:
    """One row of the hard tier. A mixed document needs two records.

    `extra_info` holds document, kind, hops (blocks that the facts stand in), formula, question, choices, and `facts`:
    name, subject, period, value, text, the character position of that text in the document, and the earlier clause that
    it replaces, if any. The answer follows from these alone.
    """
    blocks, question = _generate_records(stream, num_records, kind, layout)
    document = assemble(stream, blocks, FILLERS[layout], doc_tokens * CHARACTERS_PER_TOKEN)
    data_source, ability = SOURCES[kind]
    if kind == "choice":
        content, gold = (
            build_choice_prompt(document, question.text, question.choices),
            build_choice_answer(question.answer),
        )
    else:
        content, gold = build_prompt(document, question.text), build_answer(question.answer)
    return Row(
        data_source=data_source,
        prompt=[{"role": "user", "content": content}],
        ability=ability,
        reward_model=RewardModel(style="rule", ground_truth=gold),
        extra_info={
            "index": index,
            "split": split,
            "tier": "hard",
            "document": layout,
            "kind": kind,
            "hops": len({fact.heading for fact in question.facts}),
            "formula": question.formula,
            "question": question.text,
            "choices": question.choices,
            "facts": describe_facts(question, document),
        },
    )


def _generate_records(
    stream: random.Random, num_records: int, kind: HardKind, layout: HardDocument
) -> tuple[list[str], Question]:
    """The blocks of all records, and a question about one of them."""
    num_contracts = {"report": 0, "contracts": num_records}.get(layout)
    if num_contracts is None:
        num_contracts = stream.randrange(1, num_records)
    issuers = generate_issuers(stream, num_records - num_contracts)
    blocks = [block for issuer in issuers for block in issuer.blocks]
    if num_contracts == 0:
        return blocks, generate_question(stream, issuers, kind)
    contracts, courts = generate_contracts(stream, num_contracts)
    blocks += [courts, *(block for contract in contracts for block in contract.blocks)]
    if stream.randrange(num_records) < num_contracts:
        return blocks, generate_contract_question(stream, contracts, kind)
    return blocks, generate_question(stream, issuers, kind)


def describe_facts(question: Question, document: str) -> list[dict[str, str | int]]:
    """The facts of a question as `extra_info` has them, each with its place in the document."""
    return [
        {
            "name": fact.name,
            "subject": fact.subject,
            "period": fact.period,
            "value": fact.value,
            "text": fact.text,
            "replaced": fact.replaced,
            "position": document.index(fact.text, document.index(f"{fact.heading}\n")),
        }
        for fact in question.facts
    ]


def assemble(stream: random.Random, blocks: list[str], fillers: tuple[str, ...], num_chars: int) -> str:
    """The blocks in random order among paragraphs of filler: `num_chars` characters, or at most 250 fewer."""
    parts = list(blocks)
    room = num_chars - sum(len(block) + 2 for block in blocks)
    full = False
    while not full:
        sentences: list[str] = []
        for pattern in stream.sample(fillers, stream.randint(3, 6)):
            sentence = _fill(stream, pattern)
            full = len(sentence) + 2 > room
            if full:
                break
            room -= len(sentence) + (1 if sentences else 2)
            sentences.append(sentence)
        if sentences:
            parts.append(" ".join(sentences))
    stream.shuffle(parts)
    return "\n\n".join(parts)


def _fill(stream: random.Random, pattern: str) -> str:
    slots: dict[str, str | int] = {name: stream.choice(words) for name, words in FILLER_SLOTS.items()}
    slots["percent"] = f"{stream.randint(1, 48)}.{stream.randint(0, 9)}"
    slots["percent2"] = f"{stream.randint(1, 9)}.{stream.randint(0, 99):02d}"
    slots["count"], slots["count2"] = stream.randint(2, 19), stream.randint(2, 9)
    slots["basis"], slots["days"] = stream.randrange(10, 210, 10), stream.randrange(10, 190, 5)
    slots["staff"] = f"{stream.randint(1200, 48000):,}"
    return pattern.format(**slots)
