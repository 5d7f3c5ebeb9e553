"""Units of numbers: percent, money, time, measures, or a noun; and whether two of them are the same thing.

A word may mean several things: "$" is any dollar, "¥" yen or yuan. Two units are the same where they have a meaning in
common, the same other words ("business days" are not "calendar days") and the same base ("per hour"). One that is an
exact multiple of the other is converted. What makes a percentage point or a basis point a unit of its own is that it is
never a fraction: 30% is 0.3, and 30 percentage points are not.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal
from typing import NamedTuple

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

_CURRENCIES = """
    $ dollar dollars              = usd aud cad hkd nzd sgd twd
    us$ usd 美元 美金             = usd
    a$ aud 澳元                   = aud
    c$ cad 加元                   = cad
    hk$ hkd 港元 港币             = hkd
    nz$ nzd                       = nzd
    s$ sgd                        = sgd
    nt$ twd                       = twd
    £ gbp sterling 英镑           = gbp
    € eur euro euros 欧元         = eur
    ¥                             = jpy cny
    ₹ inr rs rupee rupees         = inr
    ₩ krw won                     = krw
    chf franc francs franken      = chf
    yen jpy 日元                  = jpy
    yuan rmb cny 元 圆 人民币     = cny
"""
_MEASURES = """
    pound pounds                  = gbp lb
    % percent percents pct per_cent 百分比 = percent
    pp ppt p_p percentage_point percentage_points 个百分点 百分点 = point
    bp bps basis_point basis_points 个基点 基点 = basis_point
    ‰ permille per_mille          = per_mille
    \u00a2 cent cents             = us_cent euro_cent
    pence penny                   = penny
    second seconds sec secs 秒    = second
    minute minutes min mins 分钟  = minute
    hour hours hr hrs h 小时      = hour
    day days 天                   = day
    日                            = day day_of_month
    week weeks 周 星期            = week
    month months mo mos 个月      = month
    月                            = month_of_year
    quarter quarters              = quarter
    year years yr yrs 年          = year
    decade decades                = decade
    times 倍 fold                 = times
    mm millimeter millimeters millimetre millimetres = mm
    cm centimeter centimeters centimetre centimetres 厘米 = cm
    meter meters metre metres 米  = meter
    m                             = meter scale
    km kms kilometer kilometers kilometre kilometres 公里 = km
    inch inches                   = inch
    foot feet ft                  = foot
    yard yards yd yds             = yard
    mile miles mi                 = mile
    mg milligram milligrams       = mg
    g gram grams 克                 = gram
    kg kgs kilogram kilograms 公斤 千克 = kg
    t                             = tonne scale
    tonne tonnes metric_ton metric_tons 吨 = tonne
    ton tons                      = ton
    oz ounce ounces               = oz
    lb lbs                        = lb
    ml milliliter milliliters millilitre millilitres = ml
    liter liters litre litres 升  = liter
    barrel barrels bbl            = barrel
    gallon gallons                = gallon
    acre acres                    = acre
    hectare hectares              = hectare
    sqft sq_ft square_foot square_feet ft2 ft^2 = sqft
    sqm sq_m square_meter square_meters square_metre square_metres m2 m^2 平方米 = sqm
    sqkm square_kilometer square_kilometers square_kilometre square_kilometres km2 km^2 平方公里 = sqkm
    square_mile square_miles      = sqmile
    kw kilowatt kilowatts         = kw
    mw megawatt megawatts         = mw
    gw gigawatt gigawatts         = gw
    kwh kilowatt_hour kilowatt_hours = kwh
    mwh megawatt_hour megawatt_hours = mwh
    gwh gigawatt_hour gigawatt_hours = gwh
    kb = kb
    mb = mb
    gb gigabyte gigabytes = gb
    tb terabyte terabytes = tb
    °c celsius degrees_celsius degree_celsius 摄氏度             = celsius
    °f fahrenheit degrees_fahrenheit                 = fahrenheit
    ° degree degrees 度           = degree
"""
_MULTIPLES = """
    percent: percent 1, point 1, basis_point 0.01, per_mille 0.1
    usd: usd 1, us_cent 0.01
    eur: eur 1, euro_cent 0.01
    gbp: gbp 1, penny 0.01
    time: second 1, minute 60, hour 3600, day 86400, week 604800
    months: month 1, quarter 3, year 12, decade 120
    length: mm 0.001, cm 0.01, meter 1, km 1000, inch 0.0254, foot 0.3048, yard 0.9144, mile 1609.344
    mass: mg 0.001, gram 1, kg 1000, tonne 1000000, lb 453.59237, oz 28.349523125
    volume: ml 0.001, liter 1
    area: sqm 1, hectare 10000, sqkm 1000000, sqft 0.09290304, acre 4046.8564224, sqmile 2589988.110336
    power: kw 1, mw 1000, gw 1000000
    energy: kwh 1, mwh 1000, gwh 1000000
"""
"""Quantity: what is measured in it, and its exact size in the first of them or in the metric one."""
_RATES = {"mph": ("mile", "hour"), "kph": ("km", "hour"), "kmh": ("km", "hour")}


def _read(table: str) -> dict[str, frozenset[str]]:
    rows = (line.split("=", 1) for line in table.strip().splitlines())
    return {word: frozenset(meanings.split()) for words, meanings in rows for word in words.split()}


_CURRENCY_MEANING = _read(_CURRENCIES)
_MEANING = _CURRENCY_MEANING | _read(_MEASURES)
_SIZE = {
    entry.split()[0]: (line.split(":")[0].strip(), Decimal(entry.split()[1]))
    for line in _MULTIPLES.strip().splitlines()
    for entry in line.split(":")[1].split(",")
}
_DIVISION = Context(prec=60)


def _alternatives(words: dict[str, frozenset[str]]) -> str:
    patterns: list[str] = []
    for word in sorted(words, key=len, reverse=True):
        ends_plain = word[-1].isascii() and word[-1].isalnum()
        patterns.append(re.escape(word).replace("_", r"[ .-]{1,2}") + ("(?![a-z])" if ends_plain else ""))
    return "|".join(patterns)


CURRENCY = re.compile(rf"(?:rs\.|{_alternatives(_CURRENCY_MEANING)})", re.IGNORECASE)
"""A currency before a number."""
UNIT = re.compile(rf"u\.?s\.? (?=dollars?\b)|(?:{'|'.join(_RATES)})\b|{_alternatives(_MEANING)}", re.IGNORECASE)
"""A unit behind a number."""
PERCENT = frozenset({"percent"})
_DOLLARS = _MEANING["$"]
UNCLEAR = frozenset({"scale", "month_of_year", "day_of_month"})
"""Meanings of words that may be no unit, as "17 m" (million) and "5月" (May); one where the gold has one as well."""


class Unit(NamedTuple):
    """The thing that a number counts; all empty where nothing says it."""

    meanings: frozenset[str] = frozenset()
    """Meanings of the known unit."""
    words: tuple[str, ...] = ()
    """Other words, such as "employees", or "business" of "business days"."""
    per: str = ""
    """Base of a rate: "hour"."""
    of: tuple[str, ...] = ()
    """Base of a share: "revenue" of "5 percent of revenue"."""

    @property
    def is_known(self) -> bool:
        """Whether it says anything."""
        return bool(self.meanings or self.words or self.per)

    def __str__(self) -> str:
        name = "dollar" if len(self.meanings) > 3 else " or ".join(sorted(self.meanings)).replace("_", " ")
        return " ".join([*self.words, *([name] if name else []), *([f"per {self.per}"] if self.per else [])])


def meaning_of(told: str) -> tuple[frozenset[str], str]:
    """All that a match of CURRENCY or UNIT may mean, and the base of a rate: "mph" is mile, hour."""
    word = re.sub(r"[ .-]{1,2}", "_", told.strip().lower().rstrip("."))
    if word in ("us", "u_s", "us_", "u_s_"):
        return frozenset({"usd"}), ""
    if rate := _RATES.get(word):
        return frozenset({rate[0]}), rate[1]
    return _MEANING[word if word in _MEANING else told.strip().lower()], ""


def factor_between(said: Unit, gold: Unit) -> Decimal | None:
    """How many of `gold` one of `said` is; None where they are not the same thing. Both say something.

    The dollars of a gold that says no more are not those of another country than the United States.
    """
    words = [tuple(_SAME_WORD.get(word, word) for word in map(to_singular, unit.words)) for unit in (said, gold)]
    is_bare_rate = bool(said.per) and not (said.meanings or said.words)
    if (
        (words[0] != words[1] and not is_bare_rate)
        or said.per != gold.per
        or (said.of and gold.of and said.of != gold.of)
    ):
        return None
    if gold.meanings == _DOLLARS and said.meanings and said.meanings <= _DOLLARS - {"usd"}:
        return None
    if said.meanings & gold.meanings or not (said.meanings or gold.meanings):
        return Decimal(1)
    for one in sorted(said.meanings & _SIZE.keys()):
        for other in sorted(gold.meanings & _SIZE.keys()):
            if _SIZE[one][0] == _SIZE[other][0]:
                return _DIVISION.divide(_SIZE[one][1], _SIZE[other][1])
    return None


_SAME_WORD = {"working": "business"}
"""Before "days"."""
_NOT_PLURAL = word_set("plus minus less times versus is was has does its this thus as us always perhaps across")
_PLURALS = word_set("people men women children staff personnel aircraft software crew cattle fish sheep head units")
_CHINESE_COUNTER = "家名个人位件项份座只台辆次股条间栋户所种岁票页章艘架笔张口"
_CHINESE_NUMBER = re.compile("[一二三四五六七八九十百千万亿兆两半多余几数以至到或和与又]")


def to_singular(word: str) -> str:
    """A rough singular, for comparison with another one: "leases" and "lease", "companies" and "company"."""
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def is_countable(words: tuple[str, ...], value: Decimal) -> bool:
    """Whether these words behind a number name what it counts: "employees", "full-time employees"."""
    last = words[-1]
    if not last.isascii():
        return len(words) == 1 and last[0] in _CHINESE_COUNTER and len(last) <= 6 and not _CHINESE_NUMBER.search(last)
    is_plural = last.endswith("s") and not last.endswith(("ss", "us", "is", "wards")) and last not in _NOT_PLURAL
    return last.isalpha() and (is_plural or last in _PLURALS or abs(value) == 1)


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
