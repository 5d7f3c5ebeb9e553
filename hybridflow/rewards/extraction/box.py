"""What a box says together with what stands around it: `$-\\boxed{42}$` is -42, and `not \\boxed{Paris}` is not Paris.

Words before the box are prose ("Then the number of branches is \\boxed{4}") and left out, where the box is the
complement of a verb, an equals sign or a colon. Otherwise the words next to it are part of the answer: "twice", "Note",
"than", or another box that it is joined to. What stands behind it in its sentence always is.
"""

from __future__ import annotations

import re

from hybridflow.rewards.text.latex import Boxed, drop_latex, write_factorials
from hybridflow.rewards.text.lexicon import ALTERNATIVES, COMPARISONS, NEGATIONS, NEUTRAL, SIGN_WORDS, word_set
from hybridflow.rewards.text.normalise import split_words
from hybridflow.rewards.text.sentences import find_ends

_CHARS_BEFORE = 300
_CHARS_BEHIND = 20
_LINK = word_set(
    """is are was were be been equals equal get gets got obtain obtains obtained give gives gave yield yields have has
    answer result value total number numbers choose chose select pick option choice conclude find found therefore thus
    leaves left spent paid earned sold received made makes owes bought counts counted employs employed
    so hence then follows about approximately around roughly exactly simply becomes as say namely 是 为 得 选 答案"""
)
_LEAVES_VALUE = word_set(
    """total sum value amount answer result number margin ratio rate average increased rose grew equal amounts comes
    increase stands stood came"""
)
"""Before "of", "by", "to" and "at"."""
_CHANGES = (NEGATIONS | COMPARISONS | ALTERNATIVES) - word_set("and both also plus")
_LINKING_MARK = re.compile(r"[=:≈,]\s{0,4}\Z")
_OPERATOR = re.compile(r"(?:\d\s?:|[-+*/^<>±×÷√\u2260≤≥\u2213\u00b7]|sqrt)\s{0,4}[({]{0,2}\s{0,4}\Z")
_BOX = re.compile(r"\\(?:f?boxed|fbox|framebox)\s{0,3}\{((?:[^{}]|\{[^{}]{0,80}\}){0,200})\}")
_DRESS = re.compile(r"(?:\\\$|\\[(\[]|\\(?:displaystyle|left)(?![a-z])|[$£€¥+\s*_{-]){1,12}\Z")
"""Directly before a box: the opening of mathematics, a sign, a currency."""
_DASH = re.compile(r"\s--?\s|---")
_MATH_CLOSES = re.compile(r"\A\s{0,4}(?:\*{1,2})?(?<!\\)\${1,2}(?!\d)")
_NOT = re.compile(r"\bnot\s{1,2}[$\\(\[]{0,3}\Z", re.IGNORECASE)
_CLAUSE = re.compile(r"[,;]|\b(?:so|therefore|thus|hence)\b")


def read_around_box(text: str, boxed: Boxed, mark_end: int) -> str:
    """The answer that the last box of `text` gives, as if the box were not drawn.

    Args:
        mark_end: Where the last mark of an answer before the box ends, or -1.
    """
    sentence = _find_sentence(text, boxed.start)
    is_marked = mark_end >= sentence
    before = text[mark_end if is_marked else sentence : boxed.start]
    dress = found.group() if (found := _DRESS.search(before)) else ""
    before = before.removesuffix(dress)
    content = write_factorials(boxed.content.strip() + "}")[:-1]
    rest = write_factorials("}" + boxed.rest[:_CHARS_BEHIND])[1:] + boxed.rest[_CHARS_BEHIND:]
    behind = _read_dress(dress) + content + _MATH_CLOSES.sub(" ", rest, count=1)
    return (_BOX.sub(r" \1 ", before) if is_marked else _find_words_before(before)) + " " + behind


def _find_sentence(text: str, at: int) -> int:
    """Where the sentence begins that `at` stands in; boxes with nothing but marks between them are in one sentence."""
    window = max(0, at - _CHARS_BEFORE)
    start = window
    for end in find_ends(text[window:at]):
        between = text[window + end + 1 : at].strip(" \t\n$\\[]()*_")
        is_joined = not between and text[start : window + end].rstrip(" \t\n$.;,\\])").endswith("}")
        start = start if is_joined else window + end + 1
    return start


def _read_dress(dress: str) -> str:
    """Sign and currency of what stands directly before a box; a dollar sign is a currency where it is escaped."""
    currency = "$" if "\\$" in dress else "".join(char for char in dress if char in "£€¥")[:1]
    opening = dress.replace("\\$", "")
    is_dash = bool(_DASH.search(opening)) and "$" not in opening and "\\" not in opening
    return ("-" if "-" in opening and not is_dash else "") + currency


def _find_words_before(before: str) -> str:
    """Of the words before a box in its sentence, those that are part of the answer."""
    if found := _BOX.search(before):
        between = [word.text for word in split_words(drop_latex(_BOX.sub(" ", before[found.end() :])))]
        if not any(word in _LINK or word in NEUTRAL for word in between):
            denial = "not " if _NOT.search(before[: found.start()]) else ""
            return denial + _BOX.sub(r" \1 ", before[found.start() :])
    plain = drop_latex(before).strip()
    words = [word.text for word in split_words(plain)]
    clause = [word.text for word in split_words(_CLAUSE.split(plain)[-1])]
    if _OPERATOR.search(plain) or _CHANGES.intersection(clause):
        return plain[-40:]
    leaves_value = len(words) > 1 and words[-1] in ("of", "by", "to", "at") and words[-2] in _LEAVES_VALUE
    is_agent = words[-1:] == ["by"] and words[-2:-1] and words[-2].endswith("ed") and words[-2] not in SIGN_WORDS
    is_linked = is_agent or not words or words[-1] in _LINK or leaves_value or _LINKING_MARK.search(plain)
    return "" if is_linked else " ".join(words[-4:])
