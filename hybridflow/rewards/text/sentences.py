"""Ends of sentences and lines, told apart from those of initials, titles and lists."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hybridflow.rewards.text.lexicon import word_set

_END = re.compile(r"[.!?](?=[\s\"')\]*_]|\Z)|\u3002|\n(?!\s{0,8}(?:[-*\u2022]|\(?\d{1,2}[.)]|\([ivxa-h]{1,4}\))\s)")
_TITLES = word_set("mr mrs ms dr st mt ft prof gen sen rep gov hon capt lt vs approx rs sq ca cf eg ie viz mio mrd")
_NUMBERED = word_set("no nos fig vol sec art p pp jan feb mar apr jun jul aug sep sept oct nov dec")
_ENUMERATOR = re.compile(r"\n\s{0,4}\(?\d{1,2}\Z")
_INITIALS = re.compile(r"(?:[^\W\d]\.)*[^\W\d]")


def find_ends(text: str) -> Iterator[int]:
    """The places of the marks that end a sentence or a line of `text`."""
    return (found.start() for found in _END.finditer(text) if _ends_sentence(text, found.start()))


def split_sentences(text: str) -> Iterator[str]:
    """The sentences and lines of `text` that hold anything."""
    start = 0
    for end in find_ends(text):
        if text[start : end + 1].strip():
            yield text[start : end + 1]
        start = end + 1
    if text[start:].strip():
        yield text[start:]


def _ends_sentence(text: str, at: int) -> bool:
    """Whether the mark at `at` ends a sentence, not an initial ("J. Smith"), a title, "No. 5" or an item's number."""
    if text[at] != ".":
        return True
    if _ENUMERATOR.search(text[max(0, at - 8) : at]):
        return False
    word = re.split(r"[\s(]", text[max(0, at - 16) : at])[-1].lower()
    following = text[at + 1 : at + 40].lstrip()[:1]
    if following.islower() or word in _TITLES or (word in _NUMBERED and following.isdigit()):
        return False
    return not (following and _INITIALS.fullmatch(word))
