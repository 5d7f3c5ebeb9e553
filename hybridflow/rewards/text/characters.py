"""One form for characters that are written in several: widths, dashes, spaces, quotes, ligatures, superscripts, marks.

Unlike NFKC, a character never runs into its neighbour: a superscript stays apart ("5²" becomes "5^2", not "52"), and
so do a fraction ("2½" becomes "2 1/2") and a number in a circle.

`remember` keeps what a pure function of one text gave for the last short texts (golds of a group, pieces of an answer),
bounded by bytes, not by entries alone: a long text is computed again each time. Some 10 MB at most for each function.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

Result = TypeVar("Result")

NUM_REMEMBERED, REMEMBERED_CHARS = 128, 1_000


def remember(function: Callable[[str], Result]) -> Callable[[str], Result]:
    """`function`, with its results for the last NUM_REMEMBERED texts of up to REMEMBERED_CHARS characters kept."""
    kept = lru_cache(maxsize=NUM_REMEMBERED)(function)

    @wraps(function)
    def call(text: str) -> Result:
        return (kept if len(text) <= REMEMBERED_CHARS else function)(text)

    return call


CJK = "\u3005\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Inside of a character class: the scripts written without spaces between words (Chinese, Japanese)."""

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63"), "-")
_SPACES = dict.fromkeys(map(ord, "\u00a0\u1680\u2007\u2008\u205f\u3000\x0b\x0c\r\u2028\u2029"), " ")
_THIN_SPACES = dict.fromkeys(map(ord, "\u2009\u202f"), "\u2009")
_QUOTES = {
    **dict.fromkeys(map(ord, "\u2018\u2019\u201a\u02bc\u00b4"), "'"),
    **dict.fromkeys(map(ord, "\u201c\u201d\u201e\u300c\u300d\u300e\u300f"), '"'),
}
_OTHER = {
    0xFFE0: "\u00a2",
    0xFFE1: "£",
    0xFFE5: "¥",
    0x22C5: "\u00b7",
    0x2044: "/",
    0x2264: "<=",
    0x2265: ">=",
    0xFF61: "\u3002",
    0xFF64: "\u3001",
}
_ONE_FORM = _FULL_WIDTH | _DASHES | _SPACES | _THIN_SPACES | _QUOTES | _OTHER
_SUPERSCRIPTS = "\u2070\u00b9²³\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b"
_RAISED = str.maketrans(_SUPERSCRIPTS, "0123456789+-")
_RAISED_RUN = re.compile(f"[{_SUPERSCRIPTS}]+")
_INVISIBLE = re.compile(
    "[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff\x00-\x08\x0e-\x1f\x7f]"
)
_FRACTIONS = re.compile("[\u00bc-\u00be\u2150-\u215e\u2189]")
_COMPOSED = re.compile("[A-Za-z][\u0300-\u036f]")
_COMPATIBLE = re.compile(
    "[\u2080-\u208e\u2100-\u214f\u2160-\u2188\u3300-\u33ff\uf900-\ufaff\ufb00-\ufb06\U0001d400-\U0001d7ff]"
)
"""Subscripts, letter-like signs, Roman numerals, squared units, ligatures, mathematical alphabets."""
_ENCLOSED = re.compile("[\u2460-\u24ff\u2776-\u2793\u3251-\u325f\u32b1-\u32bf]")
_ENTITY = re.compile(r"&(?:#\d{1,6}|#[xX][0-9a-fA-F]{1,5}|[A-Za-z]{2,8});")
_STROKED = str.maketrans(
    {
        **{"ł": "l", "Ł": "L", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "ħ": "h", "Ħ": "H"},
        **{"ı": "i", "ŧ": "t", "Ŧ": "T", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "þ": "th", "Þ": "TH"},
    }
)
"""Latin letters that Unicode does not take apart into a letter and a mark."""


def unify(text: str) -> str:
    """`text` with ASCII forms of full-width characters, dashes and quotes, and without invisible characters.

    HTML entities, marks written apart from their letter (NFD) and compatibility characters ("㎞", "ﬁ", "Ⅳ") are read
    as what they show. Thousands that are set off by a thin space keep it (U+2009), because an ordinary space also parts
    two numbers.
    Example: unify("\uff21\uff11\uff0c\u22125²") == "A1,-5^2"
    """
    if "&" in text:
        text = _ENTITY.sub(lambda found: html.unescape(found.group()), text)
    if text.isascii():
        return _INVISIBLE.sub("", text).translate(_ONE_FORM)
    if _COMPOSED.search(text):
        text = unicodedata.normalize("NFC", text)
    text = _INVISIBLE.sub("", text).translate(_ONE_FORM)
    text = _RAISED_RUN.sub(lambda found: "^" + found.group().translate(_RAISED), text)
    text = _FRACTIONS.sub(lambda found: f" {_compatible(found.group())}", text)
    text = _ENCLOSED.sub(lambda found: f" {_compatible(found.group())} ", text)
    return _COMPATIBLE.sub(lambda found: _compatible(found.group()), text)


def fold_accents(text: str) -> str:
    """Latin letters without accents: "Łódź" becomes "Lodz". Other scripts stay: a mark makes another letter there."""
    if text.isascii():
        return text
    kept: list[str] = []
    for char in text.translate(_STROKED):
        parts = char if char.isascii() else unicodedata.normalize("NFD", char)
        kept.append(parts[0] if len(parts) > 1 and parts[0].isascii() and parts[0].isalpha() else char)
    return "".join(kept)


def _compatible(char: str) -> str:
    return unicodedata.normalize("NFKC", char).replace("\u2044", "/").replace("\u2212", "-")
