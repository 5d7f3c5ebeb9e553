"""What a number counts: percent, money, time, measures; and whether two of them can be the same thing.

A unit is the set of things that its word may mean, since "$" is any dollar and "¥" is yen or yuan. No unit, or an
unknown word, may mean anything: "12" and "12 employees" can be the same, "$12" and "12%" cannot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Unit = frozenset[str]
NO_UNIT: Unit = frozenset()

_CURRENCIES = """
    $ dollar dollars              = usd aud cad hkd nzd sgd
    us$ usd 美元                  = usd
    a$ aud                        = aud
    c$ cad                        = cad
    hk$ hkd 港元                  = hkd
    nz$ nzd                       = nzd
    s$ sgd                        = sgd
    £ gbp sterling 英镑              = gbp
    € eur euro euros 欧元            = eur
    ¥                             = jpy cny
    ₹ inr rs rupee rupees         = inr
    ₩ krw won                     = krw
    chf franc francs              = chf
    yen jpy 日元                  = jpy
    yuan rmb cny 元 人民币         = cny
"""
_OTHERS = """
    pound pounds                  = gbp lb
    % percent pct pp 个百分点     = percent
    bp bps                        = basis_point
    ‰ permille                    = per_mille
    \u00a2 cent cents               = cent
    pence penny                   = penny
    second seconds sec secs 秒    = second
    minute minutes min mins 分钟 = minute
    hour hours hr hrs 小时        = hour
    day days 天 日                = day
    week weeks 周                 = week
    month months 个月 月          = month
    quarter quarters              = quarter
    year years yr yrs 年          = year
    times 倍                      = times
    km kilometer kilometers kilometre kilometres = km
    mile miles                    = mile
    cm                            = cm
    meter meters metre metres     = meter
    foot feet ft                  = foot
    inch inches                   = inch
    kg kilogram kilograms         = kg
    gram grams                    = gram
    lb lbs                        = lb
    ton tons tonne tonnes         = ton
    barrel barrels                = barrel
    gallon gallons                = gallon
    liter liters litre litres     = liter
    acre acres                    = acre
    hectare hectares              = hectare
    kwh                           = kwh
    mwh                           = mwh
    mw                            = mw
    gw                            = gw
"""


def _read(table: str) -> dict[str, Unit]:
    rows = (line.split("=") for line in table.strip().splitlines())
    return {word: frozenset(meanings.split()) for words, meanings in rows for word in words.split()}


_CURRENCY_MEANING = _read(_CURRENCIES)
_MONEY = frozenset().union(*_CURRENCY_MEANING.values())
_MEANING = _CURRENCY_MEANING | _read(_OTHERS)


def _alternatives(words: dict[str, Unit]) -> str:
    longest_first = sorted(words, key=len, reverse=True)
    return "|".join(
        re.escape(word) + ("(?![a-z])" if word.isascii() and word.isalpha() else "") for word in longest_first
    )


CURRENCY = re.compile(rf"(?:{_alternatives(_CURRENCY_MEANING)})", re.IGNORECASE)
"""A currency before a number."""
UNIT = re.compile(
    rf"per\s?cent(?:age\ points?)?\b|percentage\ points?\b|basis\ points?\b|per\ mille\b"
    rf"|(?:u\.?s\.?\ )(?=dollars?\b)|{_alternatives(_MEANING)}",
    re.IGNORECASE,
)
"""A unit behind a number."""


def meaning_of(words: str) -> Unit:
    """What a match of CURRENCY or UNIT may mean."""
    told = words.lower()
    if told.startswith("per"):
        return frozenset({"per_mille" if told.endswith("mille") else "percent"})
    if told.startswith("basis"):
        return frozenset({"basis_point"})
    return frozenset({"usd"}) if told[:1] == "u" and told.endswith(" ") else _MEANING[told]


PARTS: dict[Unit, tuple[int, Unit]] = {
    frozenset({"basis_point"}): (100, frozenset({"percent"})),
    frozenset({"per_mille"}): (10, frozenset({"percent"})),
    frozenset({"cent"}): (100, frozenset({"usd", "aud", "cad", "hkd", "nzd", "sgd", "eur"})),
    frozenset({"penny"}): (100, frozenset({"gbp"})),
}
"""Units that are parts of another one: how many make one of it."""


def can_be_same(one: Unit, other: Unit) -> bool:
    """Whether two units have a meaning in common; no unit has it with every one."""
    return not one or not other or bool(one & other)


def units_in(words: Iterable[str]) -> list[Unit]:
    """Of those of these compared words that are units."""
    return [_MEANING[word] for word in words if word in _MEANING]


def may_be_left_out(unit: Unit) -> bool:
    """Whether a bare number can stand for one with this unit: percent and money, which a question asks for by name."""
    return not unit or "percent" in unit or unit <= _MONEY


def name_of(unit: Unit) -> str:
    """The unit for a reader: "dollar", "jpy or cny", "" for none."""
    return "dollar" if unit == _CURRENCY_MEANING["$"] else " or ".join(sorted(unit))
