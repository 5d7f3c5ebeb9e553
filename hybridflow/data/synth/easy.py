"""Easy tier: one-sentence records among filler, a question about one of them, and the vocabulary of both.

    The currency is yen. The board approved the annual report for note cobalt. ...     What is the currency?

A document has exactly the asked number of tokens: words and full stops are one token each under the tiny tokenizer
(`hybridflow.policy.tokenizer`). Fillers hold decoys: values of random attributes that no record states.

Each value belongs to one attribute alone. That is what lets a very small model learn to look facts up: the word after
"currency is" and the word to answer with share an embedding that no other attribute uses.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from hybridflow.data.chat_template import build_answer, build_prompt
from hybridflow.data.schema import RewardModel, Row


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "currency": _words("yen euro dollar pound franc krona rupee peso won rand lira zloty"),
    "maturity": _words("January February March April May June July August September October November December"),
    "auditor": _words(
        "Harlowe Brennick Tolland Quimby Ostler Varden Pemrose Lockart Fennimore Gascoyne Wexley Dunmore"
    ),
    "city": _words("Lisbon Oslo Geneva Dublin Vienna Madrid Athens Prague Warsaw Helsinki Milan Zurich"),
    "jurisdiction": _words("Norway Japan Canada Brazil Chile Kenya Malta Cyprus Iceland Portugal Uruguay Singapore"),
    "sector": _words(
        "shipping mining retail energy telecom aviation farming banking logistics software textiles pharma"
    ),
    "collateral": _words("gold silver copper nickel zinc platinum palladium cobalt tin lead titanium lithium"),
    "benchmark": _words("Libor Euribor Sofr Sonia Tibor Hibor Sibor Nibor Stibor Saron Corra Wibor"),
    "guarantor": _words(
        "Norbank Ferrobank Altabank Medibank Costabank Rivobank Solbank Terrabank Lunabank Orobank Vistabank Polarbank"
    ),
    "commodity": _words("wheat maize barley rice soy cocoa coffee cotton sugar rubber timber wool"),
    "chairman": _words(
        "Almeida Bergstrom Castellan Dragov Eriksen Fontaine Grimaldi Hoshino Ivanova Jankowski Kowal Lindqvist"
    ),
    "trustee": _words(
        "Ashford Blackwell Claymore Delacourt Evergreen Fairbourne "
        "Greystone Hawthorn Kingsbridge Langmead Merriton Oakhurst"
    ),
}
"""Attribute name -> its 12 values."""

SUBJECTS = _words("board management supervisor committee bank regulator branch division treasury team")
VERBS = _words("reviewed approved discussed noted updated considered received described")
ADJECTIVES = _words("annual regional quarterly general internal strategic preliminary consolidated new major")
OBJECTS = _words("outlook report policy strategy statement market forecast budget plan schedule")
NUMBERS = tuple(str(number) for number in range(10, 100))
FUNCTION_WORDS = _words("The What the is for note in cases unknown")

ABSTENTION = "unknown"
"""The answer of a demonstration that gives up; no attribute has it as a value."""


def list_easy_words() -> tuple[str, ...]:
    """Every word of the easy tier, each once, in a fixed order."""
    values = tuple(value for group in ATTRIBUTES.values() for value in group)
    return FUNCTION_WORDS + tuple(ATTRIBUTES) + values + SUBJECTS + VERBS + ADJECTIVES + OBJECTS + NUMBERS


RECORD_TOKENS = 5
"""The | currency | is | yen | ."""
MIN_FILLER_TOKENS = 6
MAX_FILLER_TOKENS = 12
TAIL_PROBABILITY = 0.6
"""Share of the fillers with room for it that end in a three-word tail."""
DECOY_PROBABILITY = 0.3
"""Share of the tails that mention a value."""


class Record(NamedTuple):
    """A fact of an easy document."""

    attribute: str
    value: str

    @property
    def text(self) -> str:
        return f"The {self.attribute} is {self.value}."


def check_easy_size(doc_tokens: int, num_records: int) -> str | None:
    """Why no document of this size exists, or None if it does."""
    if not 1 <= num_records <= len(ATTRIBUTES):
        return f"num_records must be 1 .. {len(ATTRIBUTES)}, one per attribute; got {num_records}"
    room = doc_tokens - num_records * RECORD_TOKENS
    if room != 0 and room < MIN_FILLER_TOKENS:
        exact, least = num_records * RECORD_TOKENS, num_records * RECORD_TOKENS + MIN_FILLER_TOKENS
        return f"doc_tokens={doc_tokens} does not fit {num_records} records: use {exact}, or {least} and more"
    return None


def generate_document(stream: random.Random, doc_tokens: int, num_records: int) -> tuple[str, list[Record]]:
    """A document of exactly `doc_tokens` tokens with `num_records` records of distinct attributes, in random order."""
    attributes = stream.sample(list(ATTRIBUTES), num_records)
    records = [Record(attribute, stream.choice(ATTRIBUTES[attribute])) for attribute in attributes]
    sentences = [record.text for record in records]
    sentences += [_filler(stream, size) for size in _filler_sizes(stream, doc_tokens - num_records * RECORD_TOKENS)]
    stream.shuffle(sentences)
    return " ".join(sentences), records


def build_question(attribute: str) -> str:
    return f"What is the {attribute}?"


def generate_easy_row(stream: random.Random, index: int, split: str, doc_tokens: int, num_records: int) -> Row:
    """One row of the easy tier; `extra_info.facts` holds the record that answers it."""
    document, records = generate_document(stream, doc_tokens, num_records)
    asked = stream.choice(records)
    fact = {"name": asked.attribute, "value": asked.value, "text": asked.text, "position": document.index(asked.text)}
    return Row(
        data_source="synth_easy",
        prompt=[{"role": "user", "content": build_prompt(document, build_question(asked.attribute))}],
        ability="doc-qa",
        reward_model=RewardModel(style="rule", ground_truth=build_answer(asked.value)),
        extra_info={"index": index, "split": split, "tier": "easy", "kind": "lookup", "hops": 1, "facts": [fact]},
    )


def _filler_sizes(stream: random.Random, room: int) -> list[int]:
    """Sizes of fillers in tokens, each 6 .. 12, that add up to `room`."""
    sizes: list[int] = []
    while room > 0:
        size = min(stream.randint(MIN_FILLER_TOKENS, MAX_FILLER_TOKENS), room)
        if 0 < room - size < MIN_FILLER_TOKENS:  # would leave a rest too short for a sentence
            size = room if room <= MAX_FILLER_TOKENS else MIN_FILLER_TOKENS
        sizes.append(size)
        room -= size
    return sizes


def _filler(stream: random.Random, size: int) -> str:
    """A sentence of `size` tokens that states no fact."""
    num_adjectives = size - MIN_FILLER_TOKENS
    tail: list[str] = []
    if num_adjectives >= 3 and stream.random() < TAIL_PROBABILITY:
        num_adjectives -= 3
        if stream.random() < DECOY_PROBABILITY:
            tail = ["for", "note", stream.choice(ATTRIBUTES[stream.choice(list(ATTRIBUTES))])]
        else:
            tail = ["in", stream.choice(NUMBERS), "cases"]
    adjectives = [stream.choice(ADJECTIVES) for _ in range(num_adjectives)]
    words = ["The", stream.choice(SUBJECTS), stream.choice(VERBS), "the", *adjectives, stream.choice(OBJECTS), *tail]
    return " ".join(words) + "."
