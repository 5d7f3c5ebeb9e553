"""Clauses beside a complete answer that assert no other candidate: where it stands, short forms of it, denials.

Example: all behind the first word of "Paris [1]", "Paris (page 45, table 3)", "Paris, as stated in clause 4", "Paris
(not London)". Only closed lists of words make an aside. What else follows an answer is part of it.

Only a named candidate is denied: "not only", "not counting the cashiers" and "not necessarily" change what they stand
beside. A denied number may lend its unit to the other one ("5, not 6 million"), and is left where it has words of its
own.
"""

from __future__ import annotations

import re

from hybridflow.rewards.text.characters import CJK
from hybridflow.rewards.text.lexicon import ALTERNATIVES, COMPARISONS, MONTHS, NEGATIONS, word_set
from hybridflow.rewards.text.normalise import currencies, normalise, split_words
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

_PLACES = word_set(
    """note notes page pages p pp table tables section sections sec clause clauses article articles art item items
    exhibit recital recitals attachment attachments addendum chart graph slide sentence bullet rule rules doc docs
    exhibits schedule schedules appendix annex figure fig paragraph paragraphs para footnote footnotes line lines row
    rows column columns chapter part parts ref refs no nos 10k 10q 注 附注 表 页 第 见 条 款 节"""
)
_DOCUMENTS = word_set(
    """report reports lease leases agreement agreements contract contracts document documents text filing filings
    passage passages statement statements context source sources data financial annual table tables note notes terms
    provision provisions preamble recital recitals introduction heading header caption
    consolidated income balance sheet sheets cash flow flows company companys management"""
)
_IN_DOCUMENT = re.compile(
    r" (?:in|by) (?:the|this) (?:given |provided |above )?(?:document|text|passage|context|report|filing|excerpt)s?"
    r"\W{0,3}\Z",
    re.IGNORECASE,
)
"""Behind any answer: where it stands."""
DOCUMENT_WORDS = _PLACES | _DOCUMENTS
"""Places in a document, and its kinds."""
_HEADS = word_set(
    """see as according per under source sources based from shown stated given listed mentioned described reported
    specified cf via found which in 见 参见 根据 据"""
)
_JOINTS = word_set(
    """see as according per under source sources based from shown stated given listed mentioned described reported
    specified set out forth cf via found in on of by to at is are was were it and above below also this that its their
    discussed disclosed provided presented noted
    states says shows provides indicates reports confirmed supported which can be first last second third
    根据 据 见 参见 所述 所示 中 的"""
)
_EMPTY = word_set(
    """in total all altogether overall sum exactly precisely only indeed of course sic applies apply exists exist
    approximately approx roughly rounded"""
)
_IS_THE_ANSWER = re.compile(
    r"(?:is|was) (?:my )?(?:correct|right|answer|(?:correct|right|final|best) (?:answer|one))|(?:after|with) rounding"
)
_FORM = re.compile(r"\b(?:10-[KQ]|20-F|8-K)\b")
_CHINESE_PLACE = re.compile(
    r"(?:参?见|根据|据)?(?:合同|附件|年报|报告|招股书)?(?:第?\s?[\d一二三四五六七八九十百]{1,5}\s?[页頁条條款节節章表行]|附注\s?[\d一二三四五六七八九十]{0,4}|表\s?\d{1,3}){1,3}"
)
_CITATION = re.compile(
    r"(?<=\S)\s{0,3}\[(?:\^?\d{1,3}|[a-z*\u2020])(?:\s?[,-]\s?\d{1,3}){0,8}\]|(?<=\S)\s{0,3}\u3010\d[^\u3010\u3011]{0,20}\u3011"
)
_CLAUSE = re.compile(r"[,;:\u3001\uff0c]\s|\s--?\s")
_CLAUSE_CHARS = 160
_MOST_ASIDES = 6
_IS_NUMBER = re.compile(r"[a-z]?\d[\d.]*[a-z]?|[ivx]{1,5}|[a-z]")


def drop_asides(answer: str) -> str:
    """`answer` without citation marks, and without the asides at its end.

    Example: drop_asides("$5.2 million [1] (see Note 3)") == "$5.2 million"
    """
    answer = _CITATION.sub("", answer)
    for _ in range(_MOST_ASIDES):
        shorter = _drop_last(answer.rstrip(" .,;"))
        if shorter is None:
            break
        answer = shorter
    return answer


def is_source(clause: str) -> bool:
    """Whether a clause only tells where something stands: "as stated in Note 5", "see page 12"."""
    words = [word.text for word in split_words(_FORM.sub("filing", clause))]
    return bool(words) and words[0] in _HEADS and _tells_place(words) and words != ["which"] and words != ["in"]


def is_reference(clause: str) -> bool:
    """The same for what stands in brackets, where the place alone is enough: "page 45, table 3"."""
    if re.fullmatch(r"\s?[a-z*\u2020]\s?", clause):
        return True
    words = [word.text for word in split_words(_FORM.sub("filing", clause))]
    if not words:
        return False
    if _CHINESE_PLACE.fullmatch(clause.strip()):
        return True
    return _tells_place(words) and (words[0] in _HEADS or words[0] in _PLACES)


def is_empty(clause: str) -> bool:
    """Whether a clause says nothing: "in total", "is the answer"."""
    words = normalise(clause).split()
    return bool(words) and (all(word in _EMPTY for word in words) or bool(_IS_THE_ANSWER.fullmatch(" ".join(words))))


def abbreviates(short: str, long: str) -> bool:
    """Whether `short` is made of the initials of `long` in order, or in Chinese of some of its characters."""
    letters, words = normalise(short).replace(" ", ""), normalise(long).split()
    if not 2 <= len(letters) <= 8 or not words:
        return False
    if re.fullmatch(f"[{CJK}]+", letters):
        whole = "".join(words)
        rest = iter(whole)
        return len(letters) < len(whole) and letters[0] == whole[0] and all(char in rest for char in letters)
    initials = "".join(word[0] for word in words)
    capitals = "".join(word[0] for word in words if word not in ("of", "and", "for", "in"))
    return letters.isascii() and letters in (initials, capitals)


def _tells_place(words: list[str]) -> bool:
    """Whether all are words of places, documents and what joins them, numbers only behind a place."""
    may_be_number = False
    for word in words:
        if word in _PLACES:
            may_be_number = True
        elif _IS_NUMBER.fullmatch(word) and (may_be_number or re.fullmatch(r"(?:19|20)\d\d", word)):
            continue
        elif word in _DOCUMENTS or word in _JOINTS:
            may_be_number = may_be_number and word in ("and", "to")
        else:
            return False
    return True


def _find_opening(answer: str) -> int:
    """Where the bracket opens that the last character closes, or -1."""
    opening, closing = ("(", ")") if answer.endswith(")") else ("[", "]")
    depth = 0
    for at in range(len(answer) - 1, max(-1, len(answer) - 1 - _CLAUSE_CHARS), -1):
        depth += (answer[at] == closing) - (answer[at] == opening)
        if depth == 0:
            return at
    return -1


def _drop_last(answer: str) -> str | None:
    """`answer` without its last aside; None where it has none."""
    if (kept := drop_denied(answer)) is not None:
        return kept
    if answer.endswith((")", "]")):
        start = _find_opening(answer)
        content = answer[start + 1 : -1]
        is_label = start > 0 and len(content.strip()) == 1 and not answer[start - 1].isspace()
        if (
            start > 0
            and not is_label
            and (is_reference(content) or is_empty(content) or abbreviates(content, answer[:start]))
        ):
            return answer[:start]
    for last in _CLAUSE.finditer(answer, max(1, len(answer) - _CLAUSE_CHARS)):
        if is_source(answer[last.end() :]) or is_empty(answer[last.end() :]):
            return answer[: last.start()]
    for word in (" as ", " according ", " (", " per ", " based on ", " see ", " in total", " in all", " altogether"):
        at = answer.rfind(word, max(0, len(answer) - _CLAUSE_CHARS))
        if at > 0 and (is_source(answer[at:]) or is_empty(answer[at:])) and normalise(answer[:at]):
            return answer[:at]
    if found := _IN_DOCUMENT.search(answer, max(1, len(answer) - _CLAUSE_CHARS)):
        return answer[: found.start()]
    return None


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
