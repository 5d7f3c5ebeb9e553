"""The unit behind a number: "US dollars", "km/h", "$10 per hour", "business days", "percent of revenue", "名员工"."""

from __future__ import annotations

import re

from hybridflow.rewards.numbers.units import PERCENT, UNIT, Unit, meaning_of, to_singular
from hybridflow.rewards.text.characters import CJK
from hybridflow.rewards.text.lexicon import (
    ALTERNATIVES,
    COMPARISONS,
    MONTHS,
    NEGATIONS,
    NEUTRAL,
    PARTS,
    SCALE_LETTERS,
    SIGN_WORDS,
    SMALL_WORDS,
    is_scale,
    word_set,
)
from hybridflow.rewards.text.number_words import NUMBER_WORDS

_GAP = re.compile(r"[ \u2009]{1,2}|-(?=[a-z])", re.IGNORECASE)
_WORD = re.compile(rf"([a-z]+(?:[-'][a-z]+)*)(?![a-z0-9])|([{CJK}]{{1,8}})(?![{CJK}])", re.IGNORECASE)
_PER = re.compile(
    r" ?(?:/|\bper\b|\bann?ually\b|\bp\.a\.|\beach\b|\bevery\b|\ba(?=n? (?:year|month|week|day|hour|share)\b)n?) ?",
    re.IGNORECASE,
)
_YEARLY = re.compile(r" ?(?:annually|per annum|p\.a\.|yearly|a year|/year|/yr)(?![a-z])", re.IGNORECASE)
_OF = re.compile(r" of ", re.IGNORECASE)
_SECOND = re.compile("s(?![a-z0-9])")
"""As the base of a rate: "MB/s"."""
_DOLLARS = meaning_of("$")[0]
_MOST_WORDS = 3
_MOST_WORDS_OF = 5
_NO_UNIT_WORDS = (
    NEGATIONS | ALTERNATIVES | COMPARISONS | SIGN_WORDS | PARTS | NEUTRAL | MONTHS.keys() | SCALE_LETTERS.keys()
) - word_set("square") | word_set(
    """ago later earlier before after because since but if when while where what per of a an the and each every x e
    during through upon via among against towards under into onto off out about around versus such like whether based
    see source according stated shown"""
)
"""Behind a number, these are no part of what it counts."""


def read_unit(text: str, at: int, unit: Unit) -> tuple[Unit, int]:
    """The unit at `at` joined to what is known of it (a currency before the number), and where it ends.

    Words that are no known unit are read as what is counted; whether that may be, `quantities` decides.
    """
    meanings, per, words, of = unit.meanings, unit.per, list[str](), tuple[str, ...]()
    end = at
    while True:
        gap = _GAP.match(text, at)
        here = gap.end() if gap else at
        if (found := UNIT.match(text, here)) and _fits(found.group(), meanings):
            told, base = meaning_of(found.group())
            meanings, per = meanings & told or told, per or base
            at = end = found.end()
        elif found := _YEARLY.match(text, at):
            per, at = "year", found.end()
            end = at
        elif not per and (found := _PER.match(text, at)) and (base := _read_base(text, found.end())):
            per, at = base
            end = at
        elif meanings & PERCENT and (found := _OF.match(text, at)):
            of, end = _read_share(text, found.end())
            at = end
            break
        elif (found := _WORD.match(text, here)) and ((gap and gap.group() != "-") or (not gap and found[2])):
            word = found.group().lower()
            if word in SMALL_WORDS:
                at = found.end()
                continue
            if (
                word in _NO_UNIT_WORDS
                or NUMBER_WORDS.fullmatch(word)
                or is_scale(word)
                or len(words) == _MOST_WORDS
                or per
            ):
                break
            words.append(word)
            at = end = found.end()
        else:
            break
    return Unit(meanings, tuple(words), per, of), end


def _fits(told: str, meanings: frozenset[str]) -> bool:
    """Whether a unit can stand behind another one: the same again ("$5 USD"), or "%" behind the "$" of mathematics."""
    return not meanings or bool(meaning_of(told)[0] & meanings) or (told == "%" and meanings == _DOLLARS)


def _read_base(text: str, at: int) -> tuple[str, int] | None:
    """Reads what a rate is of, and where it ends: "per hour", "/ share"."""
    if text[at : at + 2].lower() == "n ":
        at += 2
    if found := _SECOND.match(text, at):
        return "second", found.end()
    if found := UNIT.match(text, at):
        return sorted(meaning_of(found.group())[0])[0], found.end()
    if found := _WORD.match(text, at):
        return to_singular(found.group().lower()), found.end()
    return None


def _read_share(text: str, at: int) -> tuple[tuple[str, ...], int]:
    """The plain words of what a percentage is of; none where a number or a doubt is among them."""
    words: list[str] = []
    start = at - len(" of ")
    while (found := _WORD.match(text, at)) and len(words) < _MOST_WORDS_OF:
        word = found.group().lower()
        if word in (NEGATIONS | ALTERNATIVES | COMPARISONS | PARTS) or is_scale(word):
            return (), start
        if word not in ("the", "a", "an", "total", "its", "our", "all"):
            words.append(word)
        at = found.end()
        if text[at : at + 1] != " ":
            break
        at += 1
    return (tuple(words), at) if words else ((), start)
