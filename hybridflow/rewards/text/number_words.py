"""Numbers in English words: "twenty-five", "one hundred and twenty thousand", "two and a half million", "one third"."""

from __future__ import annotations

import re
from decimal import Context, Decimal
from typing import NamedTuple

_BELOW_TWENTY = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "tenth": 10}

NUMBER_WORDS = re.compile(rf"\b(?:{'|'.join(_BELOW_TWENTY + TENS)})\b", re.IGNORECASE)
"""Any of the words below a hundred."""
_TOKEN = re.compile(r"[ -]?([a-z]+)\b", re.IGNORECASE)
_AND = re.compile(r"[ -]and(?=[ -])", re.IGNORECASE)
_PART = rf"(?P<part>{'|'.join(_PARTS)})s?\b"
_PARTS_ALONE = re.compile(
    rf"(?:(?P<above>{'|'.join(_BELOW_TWENTY[1:10])})-{_PART}"
    r"|(?:(?:an? |one )?(?P<half>half)|(?P<some>one|two) (?P<thirds>thirds?)"
    r"|(?P<above_of>an?|one) (?P<part_of>quarter|third|tenth)(?= of an? (?:million|billion|trillion)))\b)",
    re.IGNORECASE,
)
"""With a space, "three quarters" may be of a year, and is read so."""
_AND_PARTS = re.compile(rf" and (?P<above>an?|one|two|three)[ -]{_PART}", re.IGNORECASE)
_SCALE_BEHIND = re.compile(rf"(?: of)?(?: an?)? ({'|'.join(_SCALES)})\b", re.IGNORECASE)
_CONTEXT = Context(prec=60)


class Spoken(NamedTuple):
    """A number in words, and where it ends in the text."""

    value: Decimal
    end: int


def read_words(text: str, at: int) -> Spoken | None:
    """The number in words that starts at `at`; None where none does. What follows may be another one.

    Example: read_words("two and a half million", 0) == Spoken(Decimal(2500000), 22)
    """
    if alone := _PARTS_ALONE.match(text, at):
        return _scale(text, _part(alone), alone.end())
    if (whole := _read_whole(text, at)) is None:
        return None
    if parts := _AND_PARTS.match(text, whole.end):
        return _scale(text, whole.value + _part(parts), parts.end())
    return whole


def _read_whole(text: str, at: int) -> Spoken | None:
    total = current = 0
    end, last_scale = at, 10**15
    while token := _TOKEN.match(text, end):
        word = token[1].lower()
        if word in _SCALES:
            if not current or _SCALES[word] >= last_scale:
                break
            last_scale = _SCALES[word]
            total, current = total + current * last_scale, 0
        elif (larger := _join(current, word)) is None:
            break
        else:
            current = larger
        end = token.end()
        joined = _AND.match(text, end)
        if joined and current % 100 == 0 and (following := _TOKEN.match(text, joined.end())):
            end = joined.end() if _join(0, following[1].lower()) is not None else end
    return Spoken(Decimal(total + current), end) if end > at else None


def _join(current: int, word: str) -> int | None:
    """The number below ten thousand that goes on with `word`; None where it cannot."""
    if word == "hundred":
        return 100 * current if 0 < current < 100 else None
    if word in TENS:
        return current + 20 + 10 * TENS.index(word) if current % 100 == 0 else None
    if word not in _BELOW_TWENTY:
        return None
    value = _BELOW_TWENTY.index(word)
    goes_on = current % 100 == 0 or (current % 100 >= 20 and current % 10 == 0 and 0 < value < 10)
    return current + value if goes_on else None


def _part(found: re.Match[str]) -> Decimal:
    """The fraction of a match: "three-quarters" is 0.75."""
    groups = found.groupdict()
    if groups.get("half"):
        return Decimal("0.5")
    if groups.get("part_of"):
        above, part = groups["above_of"], groups["part_of"]
    else:
        above, part = (groups["some"], "third") if groups.get("thirds") else (groups["above"], groups["part"])
    numerator = 1 if above.lower() in ("a", "an") else _BELOW_TWENTY.index(above.lower())
    return _CONTEXT.divide(Decimal(numerator), Decimal(_PARTS[part.lower()]))


def _scale(text: str, value: Decimal, end: int) -> Spoken:
    if found := _SCALE_BEHIND.match(text, end):
        return Spoken(_CONTEXT.multiply(value, Decimal(_SCALES[found[1].lower()])), found.end())
    return Spoken(value, end)
