"""The form in which two free-text answers are compared: their words.

Source: the SQuAD normalisation that QwenLong-L1 uses (recipe section 4): lower case, no punctuation, no articles,
single spaces. Deviations, each of which closes a hole:

- Full-width, accented and invisible characters compare; Chinese is parted from digits and Latin letters.
- What makes a number another number stays: the decimal point ("1.3" is not "13"), the sign ("-298" is not "298"),
  "<" and ">" before a number, and "%", which is the word "percent".
- Punctuation inside a word goes ("U.S." is "us"); between words it parts them ("2019,2020" is not "20192020").
- "+" and "-" behind a grade stay ("AA-" is not "AA", "C++" is not "C").
- Ordinals are numbers ("twenty-first" is "21st"), and "v2.1" is "version 2.1".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from hybridflow.rewards.text.characters import CJK, fold_accents, remember, unify
from hybridflow.rewards.text.number_words import TENS

_MINUS = "\x00"
"""The sign of a number while other dashes are told apart from it; `unify` leaves none in a text."""
_CURRENCY = "$£€¥"
_COMPARISONS = {"<": " less than ", ">": " more than ", "<=": " at most ", ">=": " at least "}
_ONES = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"]
_TEENS = [
    *(
        "tenth",
        "eleventh",
        "twelfth",
        "thirteenth",
        "fourteenth",
        "fifteenth",
        "sixteenth",
        "seventeenth",
        "eighteenth",
    ),
    "nineteenth",
]
_ORDINALS = {word: number for number, word in enumerate([*_ONES, *_TEENS], start=1)}
_ORDINALS |= {f"{ten[:-1]}ieth": 20 + 10 * at for at, ten in enumerate(TENS)}
_ORDINALS |= {
    f"{ten}{mark}{word}": 20 + 10 * at + one
    for at, ten in enumerate(TENS)
    for one, word in enumerate(_ONES, start=1)
    for mark in " -"
}
_ORDINAL = re.compile(rf"\b(?:{'|'.join(sorted(_ORDINALS, key=len, reverse=True))})\b", re.IGNORECASE)
_ENDINGS = {1: "st", 2: "nd", 3: "rd"}


def write_ordinals(text: str) -> str:
    """`text` with ordinals up to the ninety-ninth in digits: "the ninth of May" becomes "the 9th of May"."""
    return _ORDINAL.sub(_write_ordinal, text)


def _write_ordinal(found: re.Match[str]) -> str:
    number = _ORDINALS[found.group().lower()]
    return f"{number}{'th' if number in (11, 12, 13) else _ENDINGS.get(number % 10, 'th')}"


_STEPS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"(?<=\s)&(?=\s)"), "and"),
    (re.compile(r"(?<=\s)\+(?=\s)"), "plus"),
    (re.compile(r"(?<=\w)['&](?=\w)"), ""),
    (re.compile(r"\b([A-Z]{1,4})\+(?![\w+])"), r"\1plus "),
    (re.compile(r"\b([A-Z])\+\+(?!\w)"), r"\1plusplus "),
    (re.compile(r"\b([A-D]{1,3})-(?!\w)"), r"\1minus "),
    (re.compile(r"\bC#"), "Csharp "),
    (re.compile(r"\b[vV](?:er)?\.?(?=\d)"), "version "),
    (_ORDINAL, _write_ordinal),
    (re.compile(r"\b(?:FY|[Ff]iscal)[ -]?(?=(?:19|20)\d\d)"), "fiscal year "),
    (re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])"), lambda found: found.group().replace(",", "")),
    (re.compile(r"(?<=\d)\u2009(?=\d{3}(?!\d))"), ""),
    (re.compile(rf"(?<![^\s(\[:=])([{_CURRENCY}]?\s?)-(?=(?:[A-Z]{{0,2}}[{_CURRENCY}])?\s?\.?\d)"), rf"\1{_MINUS}"),
    (re.compile(rf"{_MINUS}([A-Z]{{0,2}})[{_CURRENCY}]\s?"), rf"\1 {_MINUS}"),
    (re.compile(r"(?<![\w.])\.(?=\d)"), "0."),
    (re.compile(r"%|\bper\s?cent\b", re.IGNORECASE), " percent "),
    (re.compile(r"(?<=[^\W\d])\.(?=[^\W\d])"), ""),
)
_COMPARED = re.compile(rf"([<>]=?)\s*(?=[{_CURRENCY}]?\s?[-\x00]?\.?\d)")
_LETTER = rf"(?![{CJK}])(?:[^\W\d_]|[\u0300-\u036f\u0590-\u05cf\u0610-\u06ed\u0900-\u0dff\u0e31-\u0e4e])"
_WORD = re.compile(rf"(?P<join>[-/_])?(?:(?P<number>{_MINUS}?\d+(?:\.\d+)*)|(?P<cjk>[{CJK}]+)|(?:{_LETTER})+)")
_LABEL = re.compile(r"\w[\s-]A(?!\w)|\(\s?[aA]\s?\)|\d\s?[aA]\)")
ARTICLES = frozenset({"a", "an", "the"})


class Word(NamedTuple):
    """A word of an answer in its compared form."""

    text: str
    is_joined: bool
    """It hangs on the word before it: "low-fat", "2007-2011", "Paris/London", "12th"."""
    gap: str
    """Spaces and marks between it and the word before it."""


def split_words(text: str, *, keep_a: bool = False) -> tuple[Word, ...]:
    """The words of `text` in their compared form, articles left out. `keep_a` keeps "a", which may be a label."""
    articles = ARTICLES - {"a"} if keep_a else ARTICLES
    return tuple(word for word in _split(text) if word.text not in articles)


@remember
def _split(text: str) -> tuple[Word, ...]:
    plain = _prepare(text)
    words: list[Word] = []
    end, was_cjk, gap = -1, False, 0
    for found in _WORD.finditer(plain):
        is_cjk = found["cjk"] is not None
        is_joined = found.start() == end and (found["join"] is not None or not (is_cjk or was_cjk))
        word = found.group().removeprefix(found["join"] or "").replace(_MINUS, "-")
        is_article = word in ARTICLES
        words.append(Word(word, is_joined and bool(words), plain[gap : found.end() - len(word)]))
        end, was_cjk, gap = found.end(), is_cjk, gap if is_article else found.end()
    return tuple(words)


def normalise(text: str) -> str:
    """Lower case, no punctuation, no a/an/the, single spaces; "" where nothing is left.

    Example: normalise("The  U.S. Dollar, $1,234.5!") == "us dollar 1234.5"
    """
    return " ".join(word.text for word in split_words(text))


def holds_label(text: str) -> bool:
    """Whether an A in `text` names something, as in "Vitamin A", "Class A shares", "4(a)", and is no article."""
    return bool(_LABEL.search(unify(text)))


def currencies(text: str) -> frozenset[str]:
    """The currency signs in `text`; the compared form leaves them out."""
    return frozenset(unify(text)) & frozenset(_CURRENCY)


def _prepare(text: str) -> str:
    plain = fold_accents(unify(text))
    for pattern, replacement in _STEPS:
        plain = pattern.sub(replacement, plain)
    return _COMPARED.sub(lambda found: _COMPARISONS[found[1]], plain).casefold()
