"""Finds the answer that a completion commits to.

Source: recipe section 4 (QwenLong-L1 `reward_score/{docqa,docmath,long}.py`). Deviations: the phrase is found in any
case; a response without `</think>` is read whole, so that policies that do not think aloud can be trained, but one that
opened `<think>` and never closed it has not answered.
"""

from __future__ import annotations

import re

_SPECIAL_TOKEN = re.compile(r"<[|\uff5c][^<>|\uff5c]{1,40}[|\uff5c]>")
_PHRASE = re.compile(r"\bthe\s+answer\s+is\b", re.IGNORECASE)
_CHOICE_PHRASE = re.compile(r"\bthe\s+(?:correct\s+)?answer\s+is\b", re.IGNORECASE)
_OUTER = "\\s*_`\"'\u2018\u2019\u201c\u201d\u00ab\u00bb\u300c\u300d,;:!?\uff0c\uff1b\uff1a\uff01\uff1f\u3002"
_LEADING = re.compile(rf"\A(?:[{_OUTER}]|\.(?!\d))+")
_TRAILING = f" \t\r\n\f\v{_OUTER[2:]}."
_CHOICE = re.compile(r"\A(?:(?i:option|choice)\s+)?(?:\(\s*([A-Da-d])\s*\)|([A-D])(?![\w'\u2019]))")
_SECOND_CHOICE = re.compile(r"\A[\s*]*(?:,|/|&|;|\bor\b|\band\b)+[\s*]*(?:or\b|and\b)?[\s*]*(?:\([A-Da-d]\)|[A-D]\b)")
_IN_BRACKETS = re.compile(r"\(\s*([A-D])\s*\)")


def after_thinking(text: str) -> str:
    """The text after the last `</think>`; all of it where none is; "" where a thought was opened and never closed."""
    _, closed, tail = text.rpartition("</think>")
    shown = tail if closed else text
    return "" if "<think>" in shown else shown


def strip_outer(text: str) -> str:
    """Drops special tokens, and white space, quotes, `*` and punctuation at both ends; the point of `.5` stays."""
    cleaned = _SPECIAL_TOKEN.sub(" ", text)
    return _LEADING.sub("", cleaned).rstrip(_TRAILING)


def extract_answer(text: str) -> str:
    """What follows the last "the answer is" of the visible text; "" where there is none.

    Example: extract_answer("<think>...</think> Therefore, the answer is **yen**.") == "yen"
    """
    return _after_last(_PHRASE, after_thinking(text))


def extract_gold(ground_truth: str) -> str:
    """The gold answer, stored either as "Therefore, the answer is X." or as X alone."""
    return _after_last(_PHRASE, ground_truth) or strip_outer(ground_truth)


def extract_choice(text: str) -> str:
    """The letter A-D that the visible text commits to; "" where there is none, or more than one.

    First the letter right after the last "the (correct) answer is"; else the last letter in brackets, such as "(B)".
    A letter without brackets must be a capital: "the answer is a guess" names no choice.
    """
    shown = after_thinking(text)
    tail = _after_last(_CHOICE_PHRASE, shown)
    if found := _CHOICE.match(tail):
        if _SECOND_CHOICE.match(tail[found.end() : found.end() + 40]):
            return ""
        return (found.group(1) or found.group(2)).upper()
    bracketed = _IN_BRACKETS.findall(shown)
    return bracketed[-1] if bracketed else ""


def extract_gold_choice(ground_truth: str) -> str:
    """The gold letter: "The correct answer is (B)", "(B)", "B" or "B."; "" where there is none."""
    bare = strip_outer(ground_truth)
    return bare.upper() if re.fullmatch("[A-Da-d]", bare) else extract_choice(ground_truth)


def _after_last(phrase: re.Pattern[str], text: str) -> str:
    end = -1
    for found in phrase.finditer(text):
        end = found.end()
    return strip_outer(text[end:]) if end >= 0 else ""
