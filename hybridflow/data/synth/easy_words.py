"""Vocabulary of the easy tier: every word of it is one token of the tiny tokenizer.

Each value belongs to one attribute alone. That is what lets a very small model learn to look facts up: the word after
"currency is" and the word to answer with share an embedding that no other attribute uses.
"""

from __future__ import annotations


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
