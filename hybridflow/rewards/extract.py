"""Finds the answer that a completion commits to.

Where, in the text behind the thinking (`thinking`): behind the last of these marks, whichever it is.

    the answer is X | the correct (right, final, best) answer is X | the answer to the question is X     any case
    final answer: X | Answer: X (at the head of a line)
    \\boxed{X}
    答案是X | 答案为X | 答案：X

How much of it: up to the end of the sentence or line. What follows is explanation, except where it takes the answer
back ("Paris. No, London."): then all of it is the answer.

Source: recipe section 4 (QwenLong-L1 `reward_score/{docqa,docmath}.py`, which know "the answer is" alone). A response
without a thought is read whole, so that policies that do not think aloud can be trained.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import NamedTuple

from hybridflow.config.reward_sections import THINKING_TAGS
from hybridflow.rewards.characters import unify
from hybridflow.rewards.latex import drop_latex, find_last_boxed
from hybridflow.rewards.thinking import Tags, after_thinking
from hybridflow.rewards.wording import word_set

_GAP = r"[\s*_]++"
MARK = re.compile(
    rf"""
      \b (?:the|my|our|your) {_GAP} (?:(?:correct|right|final|best|short) {_GAP})?
         answer (?:{_GAP} to {_GAP} (?:the|this|that|your) {_GAP} question)? {_GAP} is (?:\b | (?=n't))
    | \b final {_GAP} answer (?: {_GAP} is\b | [ \t*_\#]{{0,8}} [:\n] )
    | ^ [ \t*_\#>-]{{0,8}} (?:(?:correct|short) {_GAP})? answer (?: [ \t*_]{{0,4}} : | {_GAP} is\b )
    | 答案 (?:应该|应当|应|就)? (?:是|为|:) :?
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_SPECIAL_TOKEN = re.compile(r"<[|\uff5c][^<>|\uff5c]{1,40}[|\uff5c]>")
_OUTER = "\\s*_`\"'\u00ab\u00bb\u300c\u300d\u300e\u300f\u300a\u300b,;:!?\u3001\u3002"
_LEADING = re.compile(rf"\A(?:[{_OUTER}]|\.(?!\d))+")
_TRAILING = f" \t\r\n\f\v{_OUTER[2:]}."
_MAX_CHARS = 8_000
"""No answer is longer; what follows in a response that does not end is not read."""
_MAX_READINGS = 4
_UNIT_BEHIND_BOX = re.compile(
    r"[\s$\\]{0,4}(%|percent\b|(?:hundred|thousand|million|billion|trillion)s?\b|[百千万亿元])",
    re.I,
)

_END = re.compile(r"[.!?](?=[\s\"')\]*_]|\Z)|\u3002|\n(?!\s{0,8}(?:[-*\u2022]|\(?\d{1,2}[.)])\s)")
_TITLES = word_set("mr mrs ms dr st mt ft prof gen sen rep gov hon capt lt vs approx rs")
_NUMBERED = word_set("no nos fig vol sec art p pp jan feb mar apr jun jul aug sep sept oct nov dec")
_INITIALS = re.compile(r"(?:[^\W\d]\.)*[^\W\d]")
_NUMBERED_LIST = re.compile(r"[\s:]*\(?1[.)]\s[^\n]*\n\s*\(?2[.)]\s")
_TAKES_BACK = re.compile(
    r"[\s*_\"')\].,-]*(?:no|wait|actually|sorry|correction|hmm+|or|alternatively|rather|instead)\b",
    re.IGNORECASE,
)


class Answer(NamedTuple):
    """What a completion commits to; both empty where it commits to nothing."""

    text: str
    """The first sentence or line behind the mark."""
    readings: tuple[str, ...]
    """`text`, then longer pieces from the same start: an answer may hold a full stop of its own."""
    is_taken_back: bool = False
    """What follows the first sentence denies it or offers another answer; `text` is then all of it."""


NO_ANSWER = Answer("", ())


def strip_outer(text: str) -> str:
    """Drops special tokens and LaTeX, and at both ends space, quotes, `*` and punctuation; the point of `.5` stays."""
    return _LEADING.sub("", drop_latex(_SPECIAL_TOKEN.sub(" ", text).strip())).rstrip(_TRAILING)


def extract_answer(text: str, tags: Tags = THINKING_TAGS) -> Answer:
    """The answer of a completion, as the module says; `tags` as in `thinking`.

    Example: extract_answer("<think>...</think> Therefore, the answer is **yen**. It fell.").text == "yen"
    """
    return _commit(behind_mark(unify(after_thinking(text, tags))) or "")


def extract_gold(ground_truth: str) -> Answer:
    """The gold answer, stored either as "Therefore, the answer is X." or as X alone; the whole of it is `text`."""
    told = unify(ground_truth)
    marked = behind_mark(told)
    whole = strip_outer(told if marked is None else marked)
    return Answer(whole, (whole,)) if whole else NO_ANSWER


def behind_mark(text: str, mark: re.Pattern[str] = MARK) -> str | None:
    """What follows the last mark of `text`, or stands in its last box where that is later; None without either."""
    end = -1
    for found in mark.finditer(text):
        end = found.end()
    boxed = find_last_boxed(text)
    if boxed is None or boxed.start < end:
        return text[end:] if end >= 0 else None
    return f"{boxed.content} {unit[1]}" if (unit := _UNIT_BEHIND_BOX.match(boxed.rest)) else boxed.content


def _commit(told: str) -> Answer:
    told = _LEADING.sub("", _SPECIAL_TOKEN.sub(" ", told[:_MAX_CHARS]))
    whole = strip_outer(told)
    if not whole:
        return NO_ANSWER
    true_ends = (found.start() for found in _END.finditer(told) if _ends_sentence(told, found.start()))
    ends = list(islice(true_ends, _MAX_READINGS))
    if not ends or _NUMBERED_LIST.match(told):
        return Answer(whole, (whole,))
    if _TAKES_BACK.match(told, ends[0] + 1):
        return Answer(whole, (whole,), is_taken_back=True)
    pieces = (strip_outer(told[:end]) for end in ends)
    readings = tuple(dict.fromkeys(piece for piece in (*pieces, whole) if piece))
    return Answer(readings[0], readings)


def _ends_sentence(text: str, at: int) -> bool:
    """Whether the mark at `at` ends a sentence, and not an initial ("J. Smith"), a title or "No. 5"."""
    if text[at] != ".":
        return True
    word = re.split(r"[\s(]", text[max(0, at - 16) : at])[-1].lower()
    following = text[at + 1 : at + 40].lstrip()[:1]
    if following.islower() or word in _TITLES or (word in _NUMBERED and following.isdigit()):
        return False
    return not (following and _INITIALS.fullmatch(word))
