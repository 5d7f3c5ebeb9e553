"""Finds the answer that a completion commits to.

Where, in the text behind the thinking (`thinking`): behind the last of these marks, whichever it is.

    the answer is X | the correct (right, final, best) answer is (would be, equals, comes to) X     any case
    final answer: X | Answer: X (at the head of a line) | #### 12 | <answer>X</answer>
    X is the correct answer | We get X as our answer | {"answer": X}
    \\boxed{X}, \\fbox{X}, with what stands around it
    答案是X | 答案为X | 答案：X | 【答案】X | 答：X

A sentence about the answer ("The answer is based on Note 3.") is none of these where a mark stands before it.

How much of it: up to the end of the sentence or line, or as many sentences as the gold has. What follows is
explanation, except where it takes the answer back or offers another one (`afterword`). Where it puts another one in
the answer's place, that one stands.

A box is read together with what stands around it: `$-\\boxed{42}$` is -42, and `not \\boxed{Paris}` is not Paris.
Words before the box are prose ("Then the number of branches is \\boxed{4}") and left out, where the box is the
complement of a verb, an equals sign or a colon. Otherwise the words next to it are part of the answer: "twice", "Note",
"than", or another box that it is joined to. What stands behind it in its sentence always is.

Source: recipe section 4 (QwenLong-L1 `reward_score/{docqa,docmath}.py`, which know "the answer is" alone). A response
without a thought is read whole, so that policies that do not think aloud can be trained.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import NamedTuple

from hybridflow.config.reward_sections import THINKING_TAGS
from hybridflow.rewards.extraction.afterword import ABOUT_THE_ANSWER, find_second_thought, read_correction
from hybridflow.rewards.text.characters import remember, unify
from hybridflow.rewards.text.lexicon import ALTERNATIVES, COMPARISONS, NEGATIONS, NEUTRAL, SIGN_WORDS, word_set
from hybridflow.rewards.text.markup import Boxed, drop_latex, drop_markup, find_last_boxed, write_factorials
from hybridflow.rewards.text.normalise import split_words
from hybridflow.rewards.text.sentences import find_ends
from hybridflow.rewards.text.thinking import Tags, after_thinking

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

_GAP = r"[\s*_]++"
_VERB = (
    rf"(?:is(?:\b|(?=n't))|was\b|equals\b|becomes\b|would{_GAP}be\b|should{_GAP}be\b|must{_GAP}be\b|will{_GAP}be\b"
    rf"|(?:comes|amounts|works{_GAP}out|comes{_GAP}out|turns{_GAP}out){_GAP}(?:to{_GAP}be|to|as|at)\b)"
    rf"(?:{_GAP}(?:therefore|thus|hence|then|simply|clearly|indeed|still|definitely)\b(?=[\s*_:,]{{1,6}}[^\s*_:,.]))?"
)
MARK = re.compile(
    rf"""
      \b (?:the|my|our|your) {_GAP} (?:(?:correct|right|final|best|short) {_GAP}){{0,2}}
         answer (?:{_GAP} (?:to|for|of) {_GAP} [^.!?\n]{{1,60}}?)?
         (?:,?{_GAP}(?:then|therefore|thus|here|hence),?)? {_GAP} {_VERB}
    | \b the {_GAP} (?:correct|right|final|required|requested) {_GAP} 
         (?:figure|value|number|amount|total|result|response) {_GAP} {_VERB}
    | \b final {_GAP} answer (?: {_GAP} is\b | [ \t*_\#]{{0,8}} [:\n] )
    | ^ [^\w\n]{{0,8}} (?:(?:correct|short|final) {_GAP})? ans(?:wer)? (?: [ \t*_]{{0,4}} [:=] | {_GAP} is\b )
    | ^ [ \t]{{0,3}} (?:\#{{1,6}}|\*\*) [ \t*]{{0,4}} answer [ \t*]{{0,4}} \n
    | ^ [ \t]{{0,8}} \#{{4}} [ \t]{{1,4}} (?=[-$£€¥+.]{{0,3}}\d)
    | <answer>
    | 答案 (?:应该|应当|应|应為|就)? (?:是|为|為|:) :?
    | [\u3010\[] (?:答案|解答|答) [\u3011\]] :?
    | ^ \s{{0,8}} 答 :
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_BEHIND = re.compile(
    r"(?:^|(?<=[.!?\n]))[ \t]{0,4}(?:(?:so|thus|therefore"
    r"|hence),?[ \t])?(?P<answer>[^.!?\n]{1,80}(?:\.\d+[^.!?\n]{0,40})?)"
    r"[ \t](?:is|was)[ \t](?:the|my)[ \t](?:(?:correct|right|final|best)[ \t]){0,2}answer(?=[\s.!*]|\Z)",
    re.IGNORECASE,
)
_GIVEN_AS = re.compile(
    r"(?:^|(?<=[.!?\n]))[ \t]{0,4}(?:(?:so|thus|therefore|hence),?[ \t])?(?:we|i|this|which|that)[ \t](?:get|gets"
    r"|obtain|have|take|gives|give|arrive at|choose|report)[ \t](?P<answer>[^.!?\n]{1,80}?(?:\.\d+[^.!?\n]{0,40}?)?)"
    r"[ \t]as[ \t](?:the|my|our)[ \t](?:(?:correct|right|final|best)[ \t]){0,2}(?:answer|result)(?=[\s.!*]|\Z)",
    re.IGNORECASE,
)
"""The same with the answer in the middle: "We get 41 as our answer"."""
_FIELD = re.compile(
    r"[{,]\s{0,8}\"(?:final_)?answer\"\s{0,4}:\s{0,4}(?P<quote>\"?)(?P<answer>(?:[^\"\\\n]|\\.){1,300}?)(?P=quote)"
    r"(?=\s{0,8}[,}])[^{}]{0,2000}\}(?:\s{0,4}```)?",
    re.IGNORECASE,
)
"""A field of a JSON object."""
_SPECIAL_TOKEN = re.compile(r"<[|\uff5c][^<>|\uff5c]{1,40}[|\uff5c]>")
_OUTER = "\\s*_`\"'\u00ab\u00bb\u300c\u300d\u300e\u300f\u300a\u300b,;:!?\u3001\u3002"
_LEADING = re.compile(rf"\A(?:[{_OUTER}]|\.(?!\d))+")
_TRAILING = f" \t\r\n\f\v{_OUTER[2:]}."
_QUOTED_LINE = re.compile(r"\n[ \t]{0,3}(?:>|#{1,6}(?=\s))[ \t]?")
_ONE_ITEM = re.compile(
    r"\A[\s:*_]{0,12}\n\s{0,8}(?:[-*\u2022]|\(?1[.)])\s{1,4}(?=\S)(?![^\n]*\n\s{0,8}(?:[-*\u2022]|\(?2[.)])\s)"
)
"""The mark of a list that has one item."""
MOST_CHARS = 8_000
"""No answer is longer: what follows in a response that does not end is not read. A longer gold has no answer."""
_MOST_SENTENCES = 8
_SHOWN_CHARS = 200
_EMPTY_TAG = re.compile(r"[\s*_:]{0,8}(?:<answer>)?\s{0,8}</answer>", re.IGNORECASE)
_NUMBERED_LIST = re.compile(r"[\s:]{0,8}\(?1[.)]\s[^\n]*\n\s{0,8}\(?2[.)]\s")


class Answer(NamedTuple):
    """The answer that a completion commits to; empty where it commits to nothing."""

    text: str
    """As many sentences behind the mark as the gold has, or all of it where it is taken back."""
    second_thought: str = ""
    """The sentence behind it that denies it or offers another answer."""


NO_ANSWER = Answer("")


def strip_outer(text: str) -> str:
    """Drops special tokens and LaTeX, and at both ends space, quotes, `*` and punctuation; the point of `.5` stays."""
    return _LEADING.sub("", drop_latex(drop_markup(_SPECIAL_TOKEN.sub(" ", text)).strip())).rstrip(_TRAILING)


def extract_answer(text: str, tags: Tags = THINKING_TAGS, num_sentences: int = 1) -> Answer:
    """The answer of a completion, as the module says; `tags` as in `thinking`.

    Args:
        num_sentences: As `count_sentences` says of the gold.

    Example: extract_answer("<think>...</think> Therefore, the answer is **yen**. It fell.").text == "yen"
    """
    told = behind_mark(unify(after_thinking(text, tags)))
    return _commit(told, num_sentences) if told else NO_ANSWER


@remember
def extract_gold(ground_truth: str) -> Answer:
    """The gold answer, stored either as "Therefore, the answer is X." or as X alone; empty where it says nothing."""
    told = unify(ground_truth)
    marked = behind_mark(told)
    return Answer(strip_outer(told if marked is None else marked))


@remember
def count_sentences(gold: str) -> int:
    """How many sentences a gold has, at least 1: an answer is read as far."""
    ends = islice(find_ends(gold), _MOST_SENTENCES)
    return max(1, sum(bool(gold[end + 1 :].strip(_TRAILING)) for end in ends) + 1)


def behind_mark(text: str, mark: re.Pattern[str] = MARK) -> str | None:
    """Finds what follows the last mark of `text`, or stands in and around its last box where that is later, or None."""
    start = end = -1
    for found in mark.finditer(text):
        if end < 0 or not ABOUT_THE_ANSWER.match(text, found.end()):
            start, end = found.span()
    candidates = [found for pattern in (_BEHIND, _GIVEN_AS, _FIELD) if (found := find_last(pattern, text))]
    behind = max(candidates, key=re.Match.start, default=None)
    boxed = find_last_boxed(text)
    if boxed is not None and boxed.start >= end and (behind is None or boxed.start >= behind.start()):
        return read_around_box(text, boxed, end)
    if behind is not None and behind.start() > start:
        return behind["answer"] + text[behind.end() :]
    return _up_to_closing_tag(text[end:]) if end >= 0 else None


def find_last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last match of `pattern` in `text`."""
    last = None
    for last in pattern.finditer(text):  # noqa: B007
        pass
    return last


def _up_to_closing_tag(told: str) -> str:
    """Puts what `</answer>` closes on a line of its own; what follows it is a sentence apart; "" for nothing."""
    if _EMPTY_TAG.match(told):
        return ""
    return re.sub("</answer>", ".\n", told[: 2 * MOST_CHARS], flags=re.IGNORECASE)


def _commit(told: str, num_sentences: int, most_corrections: int = 3) -> Answer:
    told = _ONE_ITEM.sub("", _QUOTED_LINE.sub("\n", told[:MOST_CHARS]))
    told = drop_markup(_SPECIAL_TOKEN.sub(" ", told))
    told = _LEADING.sub("", drop_latex(_LEADING.sub("", told)))
    whole = strip_outer(told)
    if not whole or _NUMBERED_LIST.match(told):
        return Answer(whole)
    ends = list(islice(find_ends(told), num_sentences))
    if len(ends) < num_sentences:
        return Answer(whole)
    text, rest = strip_outer(told[: ends[-1] + 1]), told[ends[-1] + 1 :]
    second = find_second_thought(rest, text)
    if second and most_corrections and (corrected := read_correction(second)):
        behind = rest.partition(second)[2]
        return _commit(f"{corrected}\n{behind}", num_sentences, most_corrections - 1)
    return Answer(whole if second else text, second[:_SHOWN_CHARS])


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
    """Finds, of the words before a box in its sentence, those that are part of the answer."""
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
