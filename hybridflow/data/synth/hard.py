"""Hard tier: long financial reports in prose and tables; questions of one and two hops, arithmetic and four choices.

The facts come from `hard_issuers`, the questions from `hard_questions`; here they become a document.
Length counts 4 characters as a token: near what large tokenizers make of English prose.
"""

from __future__ import annotations

import random

from hybridflow.data.schema import RewardModel, Row
from hybridflow.data.synth.hard_issuers import generate_issuers
from hybridflow.data.synth.hard_questions import HardKind, Question, generate_question
from hybridflow.data.synth.hard_words import FILLER_PATTERNS, FILLER_SLOTS
from hybridflow.data.template import build_answer, build_choice_answer, build_choice_prompt, build_prompt

CHARACTERS_PER_TOKEN = 4
MIN_TOKENS_PER_ISSUER = 600
"""Room that the four blocks of an issuer need at most."""
MAX_ISSUERS = 128
"""Made-up bank names do not last for many more."""

SOURCES: dict[HardKind, tuple[str, str]] = {
    "lookup": ("synth_lookup", "doc-qa"),
    "two_hop": ("synth_two_hop", "doc-qa"),
    "arithmetic": ("docmath_synth", "doc-math"),
    "choice": ("long_toc_choices_synth", "doc-mc"),
}
"""Question kind -> data_source and ability."""


def check_hard_size(doc_tokens: int, num_records: int) -> str | None:
    """Why no document of this size exists, or None if it does."""
    if num_records > MAX_ISSUERS:
        return f"num_records must be 1 .. {MAX_ISSUERS} in the hard tier; got {num_records}"
    least = num_records * MIN_TOKENS_PER_ISSUER
    if doc_tokens < least:
        most = doc_tokens // MIN_TOKENS_PER_ISSUER
        advice = f"raise doc_tokens to {least}" + (f", or lower num_records to {most}" if most else "")
        return f"doc_tokens={doc_tokens} has no room for {num_records} issuers: {advice}"
    return None


def generate_hard_row(
    stream: random.Random, index: int, split: str, doc_tokens: int, num_records: int, kind: HardKind
) -> Row:
    """One row of the hard tier.

    `extra_info` holds kind, hops, formula, question, choices, and `facts`: name, subject, period, value, text, and the
    character position of that text in the document. The answer follows from these alone.
    """
    issuers = generate_issuers(stream, num_records)
    question = generate_question(stream, issuers, kind)
    document = _assemble(stream, [block for issuer in issuers for block in issuer.blocks], doc_tokens)
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
            "kind": kind,
            "hops": len({fact.heading for fact in question.facts}),
            "formula": question.formula,
            "question": question.text,
            "choices": question.choices,
            "facts": _describe_facts(question, document),
        },
    )


def _describe_facts(question: Question, document: str) -> list[dict[str, str | int]]:
    return [
        {
            "name": fact.name,
            "subject": fact.subject,
            "period": fact.period,
            "value": fact.value,
            "text": fact.text,
            "position": document.index(fact.text, document.index(f"{fact.heading}\n")),
        }
        for fact in question.facts
    ]


def _assemble(stream: random.Random, blocks: list[str], doc_tokens: int) -> str:
    """The blocks in random order among paragraphs of filler, up to 4 * doc_tokens characters at most 250 fewer."""
    parts = list(blocks)
    room = doc_tokens * CHARACTERS_PER_TOKEN - sum(len(block) + 2 for block in blocks)
    full = False
    while not full:
        sentences: list[str] = []
        for pattern in stream.sample(FILLER_PATTERNS, stream.randint(3, 6)):
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
