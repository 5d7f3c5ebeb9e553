"""Numbers in Chinese characters, written in digits: "三千二百四十万" is 32400000, "3亿5000万" is 350000000.

`cn2an.transform` reads the characters. It is guarded: it sees one short run of numerals at a time, its warnings are
refusals, and what does not come back as a number stays as it was. "三四" (three or four) and what holds 多, 余, 几 or
数 ("五千多万", "十几") name no exact number and stay too.
"""

from __future__ import annotations

import re
import warnings
from decimal import Decimal
from functools import cache

_DIGITS = "零〇○一二两三四五六七八九壹贰叁肆伍陆柒捌玖貳兩參陸壱弐"
_SCALES = "十百千万亿兆拾佰仟萬億廿卅"
_VAGUE = "多余餘几幾数數来來"
_RUN = re.compile(
    rf"(?:百分之|负|負)?(?:\d[\d,]*(?:\.\d+)?|[{_DIGITS}{_SCALES}])(?:分之|[\d.,{_DIGITS}{_SCALES}点點{_VAGUE}]){{0,40}}"
)
_CHARACTERS = re.compile(f"[{_DIGITS}{_SCALES}]")
_PERCENT = "百分之"
_PLAIN = str.maketrans(
    "萬億點負餘○拾佰仟壹贰貳两兩叁參肆伍陆陸柒捌玖", "万亿点负余〇十百千一二二二二三三四五六六七八九"
)
_PART = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)([十百千]?(?:万亿|亿|万|兆)|[百千])")
_POWERS = {"十": 1, "百": 2, "千": 3, "万": 4, "亿": 8, "兆": 12}
_RESULT = re.compile(r"-?\d+(?:\.\d+)?(?:/\d+)?%?")
_NO_COUNT_BEHIND = "第期周拜"
"""Third, Wednesday."""
_PARTS_OF = re.compile("([千万])分之(.{1,20})")
_NO_COUNT = re.compile(r"[一二三四五六七八九两]{2,3}")


def write_digits(text: str) -> str:
    """`text` with each number in Chinese characters written in digits.

    Example: write_digits("约三千万元") == "约30000000元"
    """
    if not _CHARACTERS.search(text):
        return text
    return _RUN.sub(lambda found: _write(text, found), text)


def _write(text: str, found: re.Match[str]) -> str:
    run = found.group()
    if not _CHARACTERS.search(run) or text[found.start() - 1 : found.start()] in tuple(_NO_COUNT_BEHIND):
        return run
    plain = run.translate(_PLAIN)
    if (
        any(char in _VAGUE for char in plain)
        or text[found.end() : found.end() + 1] in (*_VAGUE, "半")
        or _NO_COUNT.fullmatch(plain)
    ):
        return run
    if (parts := _PARTS_OF.fullmatch(plain)) and (above := _read(parts[2])).isdecimal():
        return f"{Decimal(int(above)).scaleb(-_POWERS[parts[1]]):f}"
    if plain.startswith(_PERCENT):
        inner = _read(plain.removeprefix(_PERCENT))
        return f"{inner}%" if inner else run
    return _read(plain) or (plain if plain[0].isdigit() else run)


def _read(plain: str) -> str:
    """The number in digits; "" where it cannot be read."""
    if re.search("[0-9]", plain):
        return _read_mixed(plain.replace(",", ""))
    if plain.endswith("兆"):
        number = _transform(plain[:-1])
        return f"{Decimal(number).scaleb(12):f}" if number.isdigit() else ""
    return _transform(plain)


def _read_mixed(plain: str) -> str:
    """Digits with two scales or more, from the largest down: "3亿5000万", or one with all its units: "3万2500".

    One alone is left to `read_number`.
    """
    total, at, last = Decimal(0), 0, 99
    parts = list(_PART.finditer(plain))
    for part in parts:
        power = sum(_POWERS[scale] for scale in part[2])
        if part.start() != at or power >= last:
            return ""
        total, at, last = total + Decimal(part[1]).scaleb(power), part.end(), power
    units = plain[at:]
    if parts and len(units) == last and units.isdecimal():
        return f"{total + int(units):f}"
    return f"{total:f}" if len(parts) > 1 and not units else ""


@cache
def _load_transform():
    """cn2an takes 0.2 s to load, and few answers need it."""
    from cn2an import transform

    return transform


def _transform(plain: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            result = str(_load_transform()(plain, "cn2an"))
        except (Warning, ValueError, KeyError, IndexError):
            return ""
    return result if _RESULT.fullmatch(result) else ""
