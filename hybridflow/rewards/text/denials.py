"""A candidate that an answer denies asserts nothing: "Paris (not London)" and "not London but Paris" say "Paris".

Only a named candidate is denied: "not only", "not counting the cashiers" and "not necessarily" change what they stand
beside. A denied number may lend its unit to the other one ("5, not 6 million"), and is left where it has words of its
own.
"""

from __future__ import annotations

import re

from hybridflow.rewards.text.characters import CJK
from hybridflow.rewards.text.lexicon import ALTERNATIVES, COMPARISONS, MONTHS, NEGATIONS, word_set
from hybridflow.rewards.text.normalise import currencies, split_words
from hybridflow.rewards.text.number_words import NUMBER_WORDS

_NO_CANDIDATE = NEGATIONS | ALTERNATIVES | COMPARISONS | word_set("only just merely simply counting including quite")
_CANDIDATE = re.compile(rf"[\s*_\"']{{0,4}}(?:[A-Z\d$£€¥+.-]|(?:the|an?|its|their|our)\s|[{CJK}])")
_DENIED = r"(?P<denied>(?:[^,;()\[\]\n]|,(?=\d{3}|\s(?:19|20)\d\d)){1,80}?)"
_BEHIND = re.compile(
    r"(?:\s?[,;(\[]|\s-|(?=\s(?:rather|instead|as opposed|and not)\b))\s{0,2}(?:and\s|but\s)?"
    rf"(?:not|rather than|instead of|as opposed to)\s{_DENIED}[)\].\s*_\"']{{0,4}}\Z",
    re.IGNORECASE,
)
_BEHIND_CHINESE = re.compile(rf"(?:[,;(]\s?而?|而)(?:不是|并非|非)\s?{_DENIED}[)\].\s\u3002*_]{{0,4}}\Z")
_BEFORE = re.compile(
    rf"\A[\s*_\"']{{0,4}}(?:(?:it is|it's|clearly)\s)?not\s{_DENIED},?\sbut\s(?:rather\s)?(?P<answer>\S.{{0,400}})\Z",
    re.IGNORECASE | re.DOTALL,
)
_CHARS = 140
_MOST_WORDS = 8


def drop_denied(answer: str) -> str | None:
    """`answer` without the candidate that it denies; None where it denies none, or not clearly.

    Example: drop_denied("Paris, not London") == "Paris"
    """
    if found := _BEFORE.match(answer):
        return found["answer"] if _is_candidate(found["denied"], found["answer"]) else None
    start = max(1, len(answer) - _CHARS)
    found = _BEHIND.search(answer, start) or _BEHIND_CHINESE.search(answer, start)
    if found is None:
        return None
    kept = answer[: found.start()]
    return kept if _is_candidate(found["denied"], kept) else None


def _is_candidate(denied: str, kept: str) -> bool:
    """Whether `denied` names another candidate than `kept` does, and nothing of `kept` hangs on it."""
    words, others = ([word.text for word in split_words(text)] for text in (denied, kept))
    if not 0 < len(words) <= _MOST_WORDS or not _CANDIDATE.match(denied) or _NO_CANDIDATE.intersection(words):
        return False
    if f" {' '.join(words)} " in f" {' '.join(others)} ":
        return False
    if not any(map(str.isdigit, denied + kept)) and not NUMBER_WORDS.search(f"{denied} {kept}"):
        return True
    known = {*others, *(MONTHS if MONTHS.keys() & others else ())}
    own = [word for word in words if not word[-1].isdigit() and word not in known]
    return any(map(str.isdigit, denied)) and not own and currencies(denied) <= currencies(kept)
