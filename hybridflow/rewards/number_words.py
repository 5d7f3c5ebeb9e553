"""Whole numbers in English words, zero to ninety-nine."""

from __future__ import annotations

import re

_BELOW_TWENTY = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ONES = "|".join(_BELOW_TWENTY[1:10])

NUMBER_WORDS = re.compile(
    rf"\b(?:(?P<tens>{'|'.join(_TENS)})(?:[\s-](?P<ones>{_ONES}))?|(?P<small>{'|'.join(_BELOW_TWENTY)}))\b",
    re.IGNORECASE,
)


def value_of(found: re.Match[str]) -> int:
    """The number that a match of NUMBER_WORDS names: "twenty-five" is 25."""
    if found["small"]:
        return _BELOW_TWENTY.index(found["small"].lower())
    ones = _BELOW_TWENTY.index(found["ones"].lower()) if found["ones"] else 0
    return 20 + 10 * _TENS.index(found["tens"].lower()) + ones
