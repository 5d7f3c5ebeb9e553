"""The pieces that a number is written in, as patterns; `read_number` puts them together.

Each is matched where the reader stands, in text with single spaces.
"""

from __future__ import annotations

import re

from hybridflow.rewards.text.lexicon import MONTHS, SCALE_LETTERS, SCALES

_SCALE = "|".join(f"{word}s?\\b" if word.isascii() else word for word in sorted(SCALES, key=len, reverse=True))
_YEAR = rf"(?:(?:{'|'.join(MONTHS)})\.? (?:\d{{1,2}},? )?)?(?:19|20)\d\d\b"

ABOUT = re.compile(
    r"(?:(?:approximately|approx\.?|about|around|roughly|circa|ca\.|c\.|exactly|precisely|just|only|some|a\stotal\sof)\s"
    "|大约|大概|约为|合计|总计|[约約共为為~=≈:]) ?",
    re.IGNORECASE,
)
PERCENT_BEFORE = re.compile("百分之")
SIGN = re.compile("[-+]|(?:minus|negative) |[负負]", re.IGNORECASE)
OPEN, CLOSE = re.compile(r"\("), re.compile(r" ?\)")

FRACTION = re.compile(r"(?:(\d{1,9}) )?(\d{1,18}) ?/ ?(\d{1,18})(?![\d.,/])")
"""Groups: whole, numerator, denominator."""
SPACED = re.compile(r"(?<![\w.,'])(?<!\d )[1-9]\d{0,2}(?:(?: \d{3})+(?! ?\d)|(?:'\d{3})+(?!'))(?!,?\d| ?/)")
"""Thousands set off by spaces or apostrophes: "1 234 567"."""
SPACED_DECIMAL = re.compile(r"(?<![\w.,'])(?<!\d )([1-9]\d{0,2}(?:[ \u2009]\d{3})+),(\d{1,2})(?![\d,.]?\d)")
"""The same with a decimal comma: "1 234,56"."""
DIGITS = re.compile(
    r"(?:(?:\d{1,3}(?:,\d{3}){1,16}|\d{1,2}(?:,\d{2}){1,16},\d{3}|\d{1,3}(?:\u2009\d{3}){1,16}"
    r"|\d{1,320})(?:\.\d{0,320})?"
    r"|\.\d{1,320})(?![,\u2009]{0,2}\d)"
)
"""Digits with separators at the places of thousands, or of the Indian lakh, or none; never half of a longer number."""
DECIMAL_COMMA = re.compile(
    r"(?:\d{1,3}(?:\.\d{3}){1,6},\d{1,6}|0,\d{1,6}"
    r"|(?:\d{1,9},\d{1,2}|\d{1,3}(?:\.\d{3}){2,6})(?= ?(?:€|eur\b|euros?\b|kr\b|chf\b|%|percent\b"
    r"|mio\b|mrd\b)))"
    r"(?![.,]{0,2}\d)",
    re.IGNORECASE,
)
"""A decimal comma that can be nothing else: behind points of thousands, behind 0, or before a European unit.

Before such a unit, two points or more are of thousands as well: "1.234.567 €".
"""
DECIMAL_COMMA_OF_MONEY = re.compile(r"(?:\d{1,9},\d{2}|\d{1,3}(?:\.\d{3}){2,6})(?![.,]{0,2}\d)")
"""The same behind a currency."""
AND_A_PART = re.compile(r" and (?:an? |one |three[ -])?(half|quarters?|third)\b", re.IGNORECASE)
PARTS_APART = re.compile(
    r"\b(two|three|four|five|seven|nine) (?=(?:thirds|quarters|fourths|fifths|tenths)\b)", re.IGNORECASE
)
"""Fractions in words, but for their hyphen: three of the quarters of a year are written so too."""
A_PART = re.compile(r"(?:an? |one )(quarter|third|fifth|tenth|fourth)(?=\W{0,3}\Z)", re.IGNORECASE)
POWER = re.compile(
    "e(?P<e>[-+]?[0-9]{1,4})(?![0-9])| ?[x×*\u00b7] ?10 ?(?:\\^|\\*\\*) ?[{(]?(?P<ten>[-+]?[0-9]{1,4})[})]?(?![0-9])",
    re.IGNORECASE,
)
POWER_ALONE = re.compile(r"10 ?(?:\^|\*\*) ?[{(]?([-+]?[0-9]{1,4})[})]?(?![0-9])")
ONE = re.compile(r"an? (?=(?:hundred|thousand|million|billion|trillion)\b)", re.IGNORECASE)
"""The "a" of "a million"."""

NIL = re.compile(r"nil\b", re.IGNORECASE)
SCALE_WORD = re.compile(rf" ?({_SCALE})(?:\.(?= ?[€$£]| (?:eur|usd|gbp|chf)\b))?", re.IGNORECASE)
SCALE_LETTER = re.compile(rf" ?({'|'.join(sorted(SCALE_LETTERS, key=len, reverse=True))})(?![^\W_])", re.IGNORECASE)
SCALE_ASIDE = re.compile(
    rf"(?:\(\s?|,\s?)(?:in\s)?({_SCALE})(?:\s?\)|(?=\s?\Z))|\bin\s({_SCALE})(?=\s?\Z)",
    re.IGNORECASE,
)
"""A scale as tables state it: "(in thousands)", ", in millions"."""
EQUALS = re.compile("(?<![<>!=])[=≈](?!=)")
ASIDE = re.compile(r" ?\(([^()]{1,60})\)")
TIME = re.compile(
    rf"\b(?:in|for|during|of|at|on|by|since|from|between|ended|ending|over)"
    rf" (?:(?:the|fiscal|year|years|fy|ended|ending|end|of) ){{0,4}}{_YEAR}(?: ?(?:to|and|through|-) ?{_YEAR})?"
    rf"|\((?:19|20)\d\d\)",
    re.IGNORECASE,
)
"""When a number holds: "in 2019", "for the year ended December 31, 2019", "(2019)"."""
