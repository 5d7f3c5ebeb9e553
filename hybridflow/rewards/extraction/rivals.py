"""Whether a sentence behind an answer puts forward another candidate: "London fits better", "Some sources say London".

A candidate has the form of the answer: a name beside a name, a number beside a number. It is put forward where the
sentence says of it that it is something, or says that something is it, and does not deny it; and wherever the sentence
turns against what stands before ("however", "though"). A name that tells where or with whom something happened is none
("The lease was signed in Berlin."), nor is a number that a derivation goes through, or that held at another time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal

from hybridflow.rewards.numbers.number_forms import TIME
from hybridflow.rewards.text.asides import DOCUMENT_WORDS
from hybridflow.rewards.text.lexicon import MONTHS, word_set
from hybridflow.rewards.text.normalise import normalise

_NAME = re.compile(r"[A-Z][\w'&.-]{0,40}(?:\s(?:(?:of|the|de|and)\s)?[A-Z][\w'&.-]{0,40}){0,5}")
_NUMBER = re.compile(r"(?<![\w.,/-])[-+]?[$£€¥]?\d[\d,.]{0,30}")
_NO_NAME = word_set(
    """i the a an this that these those it its they their he she his her we our you your there here in on at by of to
    for from with under per as so if and or but no not none all both each any some since because when while where which
    who what how thus hence therefore however though although also another other only one two three first second third
    last next note see source sources clause let yes according based given both such after before during until unless
    still then now please ok okay thanks thank usd eur gbp us mr mrs ms dr is was ceo cfo explanation reasoning evidence
    confidence answer final correct"""
)
_TURNS = re.compile(
    r"\b(?:however|though|although|but|yet|still|that said|then again|on the other hand|nevertheless|nonetheless"
    r"|as well|likewise|too|instead|conversely|if|unless|otherwise)\b",
    re.IGNORECASE,
)
_DENIES = re.compile(
    r"\b(?:no|not|never|neither|nor|only|merely|none|without|unlike|rejected?|excluded?|ruled out|irrelevant|unrelated"
    r"|wrong|incorrect|false|former(?:ly)?|previous(?:ly)?|later|earlier|rather than|instead of|different|distractor"
    r"|cannot)\b|n't\b",
    re.IGNORECASE,
)
_IS_SAID_OF = re.compile(
    r"\s(?:is|was|would|could|may|might|must|should|can|seems?|looks?|appears?|sounds?|fits?|matches|works?|also"
    r"|remains?|makes)\b",
    re.IGNORECASE,
)
_SAID_TO_BE = re.compile(
    r"(?:\b(?:is|was|be|been|says?|said|states?|suggests?|names?|named|gives?|gave|accept|prefer|choose|pick|mean|meant"
    r"|becomes?|have|to|as|call|shows?|reads?|reports?|considers?|favou?rs?|supports?)|[:=])\s{1,2}(?:the\s|an?\s)?"
    r"[\"'*_(]{0,3}\Z",
    re.IGNORECASE,
)
_LAST = re.compile(r"[\s\"'*_.!)]{0,6}(?:too|instead|as well|also|though|here)?[\s\"'*_.!)]{0,6}\Z", re.IGNORECASE)
_SAID_NUMBER = re.compile(
    r"\b(?:it|this|that|answer|value|number|total|result|figure|one)(?:'s| is| was| would be| should be| equals)"
    r"(?: about| actually| really| rather| in fact)? \Z",
    re.IGNORECASE,
)
_RESULT = re.compile(r"(?:\b(?:gives?|gave|yields?|makes?|get|gets|obtain|arrive at)\s|=\s?)\Z", re.IGNORECASE)
_OTHER_TIME = re.compile(
    r"\b(?:last|previous|prior|preceding|next) (?:year|quarter|month|period)\b|\bthe (?:fiscal )?(?:19|20)\d\d\b",
    re.IGNORECASE,
)
_WINDOW = 60


def puts_forward_rival(sentence: str, answer: str) -> bool:
    """Whether `sentence`, which stands behind `answer`, asserts another candidate of its form."""
    is_turn = bool(_TURNS.search(sentence))
    if answer[:1].isdigit() or answer[1:2].isdigit():
        if TIME.search(sentence) or _OTHER_TIME.search(sentence):
            return False
        is_told = any(is_turn or _is_number_asserted(sentence, *at) for at in _find_numbers(sentence, answer))
        return is_told and not _DENIES.search(sentence)
    if not _NAME.search(answer):
        return False
    rivals = list(_find_names(sentence, answer))
    if not rivals or _DENIES.search(sentence):
        return False
    return is_turn or any(_is_asserted(sentence, *at) for at in rivals)


def _is_asserted(sentence: str, start: int, end: int) -> bool:
    before = sentence[max(0, start - _WINDOW) : start].strip(" \"'*_(")
    opens = not before or before[-1] in ",;:" or before.split()[-1].lower() in ("and", "that", "think", "then")
    if opens and _IS_SAID_OF.match(sentence, end):
        return True
    return bool(_SAID_TO_BE.search(sentence, max(0, start - _WINDOW), start) and _LAST.match(sentence, end))


def _is_number_asserted(sentence: str, start: int, end: int) -> bool:
    window = max(0, start - _WINDOW)
    is_said = not sentence[:start].strip(" \"'*_(") and _IS_SAID_OF.match(sentence, end)
    is_result = _LAST.match(sentence, end) and _RESULT.search(sentence, window, start)
    return bool(is_said or is_result or _SAID_NUMBER.search(sentence, window, start))


def _find_names(sentence: str, answer: str) -> Iterator[tuple[int, int]]:
    """Where the names of a sentence stand that share no word with the answer."""
    own = set(normalise(answer).split())
    for found in _NAME.finditer(sentence):
        words = normalise(found.group()).split()
        foreign = [word for word in words if word not in _NO_NAME | DOCUMENT_WORDS and word not in MONTHS]
        if foreign and not own.intersection(foreign) and len(foreign[0]) > 1:
            yield found.start() + found.group().lower().find(foreign[0][:2]), found.end()


def _scaled(digits: str) -> list[str]:
    """A number as a percentage and as a fraction."""
    if not re.fullmatch(r"\d+(?:\.\d+)?", digits):
        return []
    return [f"{Decimal(digits).scaleb(shift).normalize():f}" for shift in (2, -2)]


def _find_numbers(sentence: str, answer: str) -> Iterator[tuple[int, int]]:
    """Where the numbers stand that are not the answer's, and no year or the number of a clause or page."""
    own = set(re.findall(r"\d[\d.]*\d|\d", answer.replace(",", "")))
    for found in _NUMBER.finditer(sentence):
        digits = found.group().replace(",", "").strip("$£€¥+-.")
        before = sentence[: found.start()].split()[-1:] or [""]
        is_reference = before[0].lower().strip("(.") in DOCUMENT_WORDS or re.fullmatch(r"(?:19|20)\d\d", digits)
        if not own & {digits, *_scaled(digits)} and not is_reference:
            yield found.span()
