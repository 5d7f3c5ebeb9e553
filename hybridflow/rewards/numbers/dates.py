"""Reads a date, or a time of day, in the forms that reports use: "March 3, 2020" and "2020-03-03" are the same answer.

Two numbers that could be day and month either way ("03/04/2020") are no date: which one is meant cannot be told. "2:30"
alone may be of either half of the day: it equals no other time than itself.
"""

from __future__ import annotations

import re
from calendar import monthrange
from typing import NamedTuple

from hybridflow.rewards.numbers.chinese_numbers import write_digits
from hybridflow.rewards.text.characters import unify
from hybridflow.rewards.text.lexicon import MONTHS
from hybridflow.rewards.text.normalise import write_ordinals

_TIME = re.compile(
    r"(?:at )?(?P<hour>\d{1,2})(?:[:.](?P<minute>[0-5]\d))?(?::00)?(?: ?(?:(?P<half>[ap])\.?m\.?|h|hrs|hours))?",
    re.IGNORECASE,
)

_MONTH = rf"(?P<month>{'|'.join(sorted(MONTHS, key=len, reverse=True))})\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th|\.)?"
_YEAR = r"(?P<year>(?:1[5-9]|20|21)\d\d)"
_WEEKDAY = r"(?:(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?\.?,? )?"
_WEEKDAY_BEHIND = re.compile(
    r",? \(?(?:(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?)\)?\Z| ?\(?(?:星期|周"
    r"|礼拜)[一二三四五六日天1-6]\)?\Z",
    re.IGNORECASE,
)
_TIME_OF_DAY = re.compile(
    r",?(?: at)? \d{1,2}:\d\d(?::\d\d)?(?: ?[ap]\.?m\.?)?(?: ?(?:utc|gmt|z|[+-]\d\d:?\d\d))?\Z", re.IGNORECASE
)
_LEAD = (
    r"(?:(?:it|this|that|date|they|he|she|and|was|were|is|are|has|been|first|originally|the|as|of|on|in|at|by|into"
    r"|agreement|lease|contract|"
    r"dated|signed|executed|issued|made|effective|entered|commenced?|commencing|began|begins|beginning|started"
    r"|starts|starting|"
    r"ended|ends|ending|expired|expires|occurred|due|paid|declared|announced|completed|closed|filed|adopted|approved"
    r"|born|died|"
    r"established|founded|incorporated|published|released|acquired|opened|terminated) ){0,6}"
)
"""Before a date: verbs and prepositions that leave the day as it is, unlike "before", "after", "until", "since"."""
_FORMS = [
    re.compile(rf"\A{_LEAD}{_WEEKDAY}(?:the )?{form}\Z", re.IGNORECASE)
    for form in (
        rf"{_MONTH} (?:the )?{_DAY}(?:(?:,| of|, of)? {_YEAR})?",
        rf"{_DAY}(?: day)?(?: of)? {_MONTH}(?:,?(?: of)? {_YEAR})?",
        rf"{_DAY}-{_MONTH}-{_YEAR}",
        rf"{_MONTH},? (?:of )?{_YEAR}",
        rf"{_YEAR},? {_MONTH} {_DAY}",
        rf"{_YEAR}[-/](?P<month>\d{{1,2}})(?:[-/]{_DAY}(?:T\d\d:\d\d(?::\d\d(?:\.\d{{1,9}})?)?(?:Z"
        rf"|[+-]\d\d:?\d\d)?)?)?",
        rf"{_YEAR}\.(?P<month>\d{{1,2}})\.{_DAY}",
        rf"{_YEAR} ?年 ?(?P<month>\d{{1,2}}) ?月(?:份| ?{_DAY} ?[日号號])?",
    )
]
_SLASHED = re.compile(rf"\A(\d{{1,2}})[/.-](\d{{1,2}})[/.-]{_YEAR}\Z")


_MAX_CHARS = 80


_QUARTER = re.compile(
    r"(?:in |the )*(?:Q(?P<letter>[1-4])|(?P<ordinal>[1-4])(?:st|nd|rd|th) quarter)"
    r"(?:(?: of| in|,)?(?P<fiscal> fiscal(?: year)?| FY)? ?(?P<year>(?:19|20)\d\d))?",
    re.IGNORECASE,
)


class Quarter(NamedTuple):
    """A quarter of a year."""

    year: int | None
    number: int
    is_fiscal: bool

    def __str__(self) -> str:
        return f"Q{self.number} {'fiscal ' if self.is_fiscal else ''}{self.year or ''}".strip()


def parse_quarter(answer: str) -> Quarter | None:
    """The quarter that all of `answer` is. Example: parse_quarter("the third quarter of 2020") == (2020, 3, False)"""
    found = _QUARTER.fullmatch(write_ordinals(unify(answer[:_MAX_CHARS])).strip(" .,;"))
    if found is None:
        return None
    number = int(found["letter"] or found["ordinal"])
    return Quarter(int(found["year"]) if found["year"] else None, number, bool(found["fiscal"]))


class Date(NamedTuple):
    """A date as precise as it was given; None where it says nothing."""

    year: int | None
    month: int
    day: int | None

    def __str__(self) -> str:
        year = "????" if self.year is None else f"{self.year:04d}"
        return f"{year}-{self.month:02d}" + ("" if self.day is None else f"-{self.day:02d}")


def parse_date(answer: str) -> Date | None:
    """The date that all of `answer` is, at least a month with a day or a year; None where it is none.

    Example: parse_date("3rd of March 2020") == Date(2020, 3, 3)
    """
    if len(answer) > _MAX_CHARS:
        return None
    text = re.sub(r"\s+", " ", write_ordinals(write_digits(unify(answer)))).strip(" .,;")
    text = _TIME_OF_DAY.sub("", _WEEKDAY_BEHIND.sub("", text))
    if found := _SLASHED.match(text):
        first, second = int(found[1]), int(found[2])
        if first != second and max(first, second) <= 12:
            return None
        return _checked(int(found["year"]), min(first, second), max(first, second))
    for form in _FORMS:
        if found := form.match(text):
            parts = found.groupdict()
            month, day, year = parts["month"].lower(), parts.get("day"), parts.get("year")
            return _checked(int(year) if year else None, MONTHS.get(month) or int(month), int(day) if day else None)
    return None


def _checked(year: int | None, month: int, day: int | None) -> Date | None:
    """The date, or None where the calendar has no such day."""
    if not 1 <= month <= 12 or (day is not None and not 1 <= day <= monthrange(year or 2000, month)[1]):
        return None
    return Date(year, month, day)


def parse_time(answer: str) -> int | None:
    """The minutes since midnight that all of `answer` is; None where it is no time of day, or one of two."""
    found = _TIME.fullmatch(unify(answer).strip(" ,;"))
    if found is None or not (found["half"] or found["minute"]):
        return None
    hour, minute, half = int(found["hour"]), int(found["minute"] or 0), (found["half"] or "").lower()
    if half:
        return (hour % 12 + (12 if half == "p" else 0)) * 60 + minute if 1 <= hour <= 12 else None
    return hour * 60 + minute if 13 <= hour <= 23 or hour == 0 else None
