"""Reads one number out of an answer, exactly and without evaluating anything.

Source: the forms that DocMath-Eval accepts (recipe section 4), less its `eval`, its powers of ten and its blindness to
sign.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal, InvalidOperation

_CONTEXT = Context(prec=60)
_LARGEST_EXPONENT = 300
_READ_CHARS = 200
"""A number and its unit are at the start of an answer; more than this is not read."""

_PLAIN = str.maketrans("\u2212\u2013\u2014\uff0d\u00a0\u202f", "----  ", "\\")
_SENTENCE_END = re.compile(r"[\n;]|[.!?](?=\s|\Z)")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "mn": 6, "billion": 9, "bn": 9, "trillion": 12}
_CURRENCY = r"(?:(?:us|s|a|c|hk|nz)?[$\u00a3\u20ac\u00a5]|usd|eur|gbp|rmb|cny|yen)"
_NUMBER = re.compile(
    rf"""
    \A \s* (?: (?:approximately|about|around|roughly) \s+ | [=~\u2248] \s* )*
    (?P<sign>[-+])? \s* (?:{_CURRENCY}\s*)?
    (?P<open>\()? \s* (?:{_CURRENCY}\s*)? (?P<inner>[-+])? \s*
    (?P<digits> (?:\d{{1,3}}(?:,\d{{3}})+ | \d+) (?:\.\d*)? | \.\d+ ) (?![\d,]*\d)
    (?: [eE](?P<exp>[-+]?\d{{1,4}}) | \s*[x\u00d7*]\s*10\s*(?:\^|\*\*)\s*[{{(]?(?P<pow>[-+]?\d{{1,4}})[}})]? )?
    \s* (?P<close_early>\))?
    \s* (?: (?:%|per\s?cent\b|percentage\ points?\b) | (?P<scale>{"|".join(_SCALES)})s?\b )?
    \s* (?P<close>\))?
    (?P<rest>.*) \Z
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)


def parse_number(answer: str) -> Decimal | None:
    """The number that `answer` starts with, or None where it states none, or more than one.

    Read: thousands separators, $ £ € ¥ and common currency codes, "(1.5)" for minus 1.5, "1.5e3", "1.5 x 10^3" and the
    scale words hundred .. trillion, which multiply ("60.5 million" is 60500000). A percent sign or word is a unit and
    is dropped: "40%" is 40. Words may follow ("12 years"); another digit in the same sentence may not ("5 or 6",
    "1/2", "2019-2020").
    """
    text = answer[:_READ_CHARS].translate(_PLAIN)
    if end := _SENTENCE_END.search(text):
        text = text[: end.start()]
    found = _NUMBER.match(text)
    if found is None or not _is_whole(found):
        return None
    try:
        value = Decimal(found["digits"].replace(",", ""))
        shift = int(found["exp"] or found["pow"] or 0) + _SCALES.get((found["scale"] or "").lower(), 0)
        value = value.scaleb(shift, _CONTEXT)
    except InvalidOperation:
        return None
    if value and abs(value.adjusted()) > _LARGEST_EXPONENT:
        return None
    if found["open"] and not (found["sign"] or found["inner"]):
        return -value
    return -value if (found["sign"] == "-") != (found["inner"] == "-") else value


def are_close(predicted: Decimal, gold: Decimal, relative_tolerance: Decimal) -> bool:
    """|predicted - gold| <= relative_tolerance * |gold|, in decimal arithmetic. Nothing but 0 is close to 0."""
    difference = abs(_CONTEXT.subtract(predicted, gold))
    return difference <= _CONTEXT.multiply(relative_tolerance, abs(gold))


def _is_whole(found: re.Match[str]) -> bool:
    """Brackets pair up, and what follows the number is words, not more of it."""
    is_open = bool(found["open"])
    num_closed = bool(found["close_early"]) + bool(found["close"])
    rest: str = found["rest"]
    is_separated = not rest or found.string[found.start("rest") - 1] in " %)"
    glued = not is_separated and (rest[0].isalnum() or rest[0] in "_/^")
    return num_closed == is_open and not glued and not any(char.isdigit() for char in rest)
