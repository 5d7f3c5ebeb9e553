"""Facts that a hard-tier document states, each with the text that states it, and the blocks that hold those texts."""

from __future__ import annotations

import random
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

from hybridflow.data.synth.hard_words import FIRST_NAMES, NAME_STEMS, SURNAMES


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
