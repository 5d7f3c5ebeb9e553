"""The letter of a choice that an answer asserts, and the mentions of others that it does not.

Each letter is a mention: "(B)", "B.", "b", "B) Apple", "option b", "选项B". A mention is

- denied where its clause says so: "not (A) but (C)", "A is wrong", "(B)? No";
- talked about where it stands in a sentence behind the answer: "C: (A) and (B) are about subtenants",
  "D (both A and B)", "B. Note that A is a common distractor";
- asserted otherwise: joined to another one ("A + C", "A, but C is also correct"), or alone.

An article or the end of a name is no mention: "a", "A guess", "A clause that applies", "B vitamins", "Class B".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from hybridflow.rewards.text.markup import drop_latex, drop_markup

_NAMED = r"(?:\b(?:option|choice|letter|answer|item|statement)s?\s{1,3}|[选選][项項]?\s{0,3})"
_MENTION = re.compile(
    rf"(?i:{_NAMED})[(\[]?\s?(?P<small>[a-d])\s?[)\]]?(?![A-Za-z0-9_'&+-])"
    r"|[(\[{<\u3010]\s{0,3}(?P<bracketed>[A-Da-d])\s{0,3}[)\]}>\u3011]"
    r"|(?<![A-Za-z0-9_$&+.-])(?:(?P<closed>[A-Da-d])\)|(?P<bare>[A-D])(?![A-Za-z0-9_'&+]|-\S|/(?![A-D]\b)[A-Za-z]|\.[A-Za-z]))"
)
_ALONE = re.compile(r"[\s*_\"'`(\[{<.]{0,6}([A-Db-d])[\s*_\"'`)\]}>.!:]{0,6}")
_NAMED_BEFORE = re.compile(rf"{_NAMED}[*_]{{0,2}}\Z", re.IGNORECASE)
_OPENING = re.compile(
    r"[\s*_\"'(\[]{0,6}|[\s,:*(]{0,4}(?:而是|而应是|应该是|应为|是)[\s:(]{0,3}|[\s*_:\"'(\[-]{0,6}(?:第?[一二三四]?个?[选選][项項]?)?[\s:]{0,3}"
    r"|[\s*_:\"'(\[-]{0,6}(?:(?:it\sis|it's|i\s(?:think|believe|would\ssay|say|choose|pick)|must\sbe|would\sbe|clearly|definitely|simply|therefore|indeed|that\sis|surely|namely|option"
    r"|choice|letter|probably|the|answer|first|second|third|fourth|last|one|is|,|:)[\s,*_(\[]{1,4}){0,6}",
    re.IGNORECASE,
)
"""Before the first letter of an answer."""
_OPENING_CHARS = 80
_JOINS_TWO = re.compile(r"\b(?:both|either|neither)\s\Z", re.IGNORECASE)
_MAY_FOLLOW = re.compile(
    r"[ \t*_]{0,4}\n|[\s*_]{0,6}(?:\Z|[^\w\s]|[\u3400-\u9fff]|(?:because|since|as|for|given|based|due|is|was|were"
    r"|must|should|would"
    r"|has|which|in|from|with|and|or|but|plus|then|to|through|versus|vs|rather|instead|not|unlike)\b)",
    re.IGNORECASE,
)
"""Behind a bare letter that is a choice; other words make an article or a name of it."""
_VERB_BEHIND = re.compile(r"\s(?:could|may|might|can|also|too|does|do|are)\b", re.IGNORECASE)
_PART_OF_NAME = re.compile(
    r"\b(?:class|schedule|exhibit|series|vitamin|grade|appendix|part|section|type|group|level|table|figure|note|tier"
    r"|plan|unit|block|building|annex|article|clause|party|company|phase|tranche|hepatitis|point|line|row|column"
    r"|zone)\s\Z",
    re.IGNORECASE,
)
_CLAUSE_ENDS = re.compile(
    r"[.!?;\n\u3002\uff1b]|,\s?(?=而)|,\s(?=[(\[]?[A-D][)\]]?\s(?:is|was|isn't|can(?:no|')t|has)\b)"
    r"|,\s(?=(?:but|while|whereas|although|though|because|since|as|so|not|and|no,?\swait|wait|actually|sorry|no|i\smean)\b)"
    r"|\b(?:but|because|since|while|whereas|although|though|unlike)\b|\s-\s"
)
DENIES = re.compile(
    r"\b(?:not|no|isn't|wasn't|aren't|can't|cannot|doesn't|don't|neither|none|nor|never|without|except|excluding|unlike"
    r"|wrong|incorrect|false|rather than|instead of|than|eliminated?|ruled out|excluded?|rejected?|dismissed|out)\b"
    r"|不|错|排除",
    re.IGNORECASE,
)
"""In the clause of a letter: it says that the letter is not the answer."""
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|neither|nor|never|except|excluding|unlike|rather than|instead of|than|isn't|cannot be|can't be)\b"
    r"|不是|并非|而不是)[\s(*_\"']{0,4}(?:either |option |choice |be )?[\s(\[*_\"']{0,3}\Z",
    re.IGNORECASE,
)
_DENIED_BEHIND = re.compile(r"[\s*_)\]\"']{0,4}(?:is|was|isn't|can(?:no|')t|wasn't|不)", re.IGNORECASE)
_OFFERS = re.compile(
    r"\b(?:also|too(?=\W{0,3}\Z)|as well|equally|alternatively|possibly|maybe|perhaps|could|may|might|either|or"
    r"|plausible|defensible|arguable|acceptable|valid|just as|if|unless|otherwise|fits?|works|better|best"
    r"|likel(?:y|ier)|possible)\b|也|或|可能",
    re.IGNORECASE,
)
_LISTED = re.compile(r"[)\]*_]{0,3}\s?(?:,\s?)?(?:(?:or|nor|and|/)\s)?(?:option |choice )?[(\[*_]{0,3}")
"""Between two letters of a list."""
_LONGEST_LIST = 4
_LIKEWISE = re.compile(
    r"\b(?:as|so)\s(?:is|are|does|do|did|was|will|would|can)\s(?:option\s|choice\s)?[\s(\[*_\"']{0,3}\Z", re.IGNORECASE
)
"""Before a letter: what was said of another one holds of it too ("as does C")."""
_NONE_OF = re.compile(r"\b(?:none|neither) of\b", re.IGNORECASE)
_JOINED = re.compile(r"[\s*_)\]]{0,4}(?:or|plus)\b(?!\s{0,3}[(\[]?[A-D]\b)", re.IGNORECASE)
_TURNS = re.compile(
    r"[\s*_,-]{0,4}(?:(?:no|wait|actually|sorry|hmm+|correction|i mean|scratch that|make that)\b[\s,:-]{0,4}){1,3}"
    r"(?:it is |it's )?",
    re.IGNORECASE,
)
"""At the start of a clause: it takes back what stands before."""
_VERB = re.compile(
    r"\b(?:is|are|was|were|be|been|has|have|had|does|do|did|will|would|can|applies|apply|concerns?|refers?"
    r"|describes?|mentions?|states?|says?|covers?|lists?|deals?|contradicts?|fails?|misses|includes?|talks?|speaks?"
    r"|limits?|allows?"
    r"|requires?|permits?|confuses?)\b|是|在|说|指",
    re.IGNORECASE,
)
_REASON = r"[\s(*_]{0,4}(?:because|since|as|while|whereas|although|though|\(?[A-D]\)?\s?:)"
_REASON_ABOUT = re.compile(rf"{_REASON}[\s(*_]{{0,4}}", re.IGNORECASE)
_GIVES_REASON = re.compile(r"[\s(*_]{0,4}(?:because|since|while|whereas|although|though)\b")
_SUBJECT = re.compile(rf"\A{_REASON}.{{0,40}}?\s[a-z]{{3,}}s\b", re.DOTALL)
"""A clause that gives a reason, with a letter as its subject: "because (A) ignores the notice"."""
_NAMED_SUBJECT = re.compile(r"[)\]*_\"']{0,3}\s[a-z]{3,}(?:s|ed)\b")
"""Behind a letter with its kind or in brackets: a verb ("Choice C mixes up the dates")."""
_SUMS_UP = re.compile(r"[\s:.*_)-]{0,6}\(?(?:both|all|none|neither|either|each)\b", re.IGNORECASE)
"""Behind a letter: its text names others ("all of the above (A, B and C)")."""
_SUMMED_UP = re.compile(r"\b(?:both|all|none)\b[^.!?]{0,60}\Z", re.IGNORECASE)
_NEXT_SENTENCE = re.compile(r"[.!?\n;]\s")
_QUESTIONED = re.compile(r"[)\]*_\"' ]{0,4}\?")
_CLAUSE_CHARS = 200
_MOST_MENTIONS = 300
"""More of them are no answer."""


class Mention(NamedTuple):
    """A letter of a choice in a text."""

    letter: str
    start: int
    end: int


def find_asserted(told: str) -> str:
    """The one letter that an answer asserts; "" for none or several.

    Example: find_asserted("not (A) but (C).") == "C"
    """
    text = drop_latex(drop_markup(told)).strip()
    if alone := _ALONE.fullmatch(text):
        return alone[1].upper()
    mentions = list(_find_mentions(text))
    if not 0 < len(mentions) <= _MOST_MENTIONS or not _opens_answer(text[: mentions[0].start]):
        return ""
    asserted: set[str] = set()
    for at, mention in enumerate(mentions):
        if _is_asserted(text, mentions, at, is_first=not asserted):
            asserted = {mention.letter} if asserted and _is_turned_to(text, mention) else asserted | {mention.letter}
    return asserted.pop() if len(asserted) == 1 else ""


def _find_mentions(text: str) -> Iterator[Mention]:
    is_first = True
    for found in _MENTION.finditer(text):
        letter = found["bracketed"] or found["closed"] or found["bare"] or found["small"]
        before = text[max(0, found.start() - 24) : found.start()]
        if not is_first and not found["bracketed"] and _PART_OF_NAME.search(before):
            continue
        if found["bare"] and not _NAMED_BEFORE.search(before):
            is_later_letter = not is_first and (letter != "A" or bool(_VERB_BEHIND.match(text, found.end())))
            if not is_later_letter and not _MAY_FOLLOW.match(text, found.end()):
                continue
        yield Mention(letter.upper(), found.start(), found.end())
        is_first = False


def _opens_answer(before: str) -> bool:
    """Whether the answer opens with its first letter, or with words that lead to it or deny it."""
    return len(before) <= _OPENING_CHARS and bool(
        _OPENING.fullmatch(before) or _DENIED_BEFORE.search(before) or _JOINS_TWO.search(before)
    )


def _is_asserted(text: str, mentions: list[Mention], at: int, *, is_first: bool) -> bool:
    """Whether a mention is; `is_first` where none before it was."""
    mention = mentions[at]
    before, behind = _find_clause(text, mention)
    is_offered = at > 0 and bool(_OFFERS.search(before) or _TURNS.match(before))
    if (
        _is_denied_before(text, mentions, at)
        or _NONE_OF.search(before)
        or (_QUESTIONED.match(text, mention.end) and not is_offered)
    ):
        return False
    if at == 0:
        return not (_DENIED_BEHIND.match(behind) and DENIES.search(behind)) and not _JOINED.match(behind)
    if _is_summed_up(text, mentions, at):
        return False
    if _LIKEWISE.search(before):
        return True
    if (turn := _TURNS.match(before)) and not DENIES.search(clause := before[turn.end() :] + behind):
        return True
    if is_first and _OPENING.fullmatch(before) and before.strip(" *_("):
        return not DENIES.search(behind)
    clause = f"{before} {behind}"
    if DENIES.search(clause) or _OFFERS.search(clause):
        return bool(_OFFERS.search(clause))
    lead = _NAMED_BEFORE.sub("", before)
    is_named = lead != before or text[mention.start : mention.end].startswith("(")
    if is_named and not lead.strip(" *_(") and _NAMED_SUBJECT.match(behind):
        return False
    return mention.letter == mentions[0].letter or not _is_statement(before, clause)


def _is_turned_to(text: str, mention: Mention) -> bool:
    """Whether a letter takes the place of those before it: "B, no wait, C"."""
    before, behind = _find_clause(text, mention)
    turn = _TURNS.match(before)
    is_alone = not before[turn.end() :].strip(" *_(") and not behind.strip(" *_)") if turn else False
    return is_alone and not _QUESTIONED.match(text, mention.end)


def _is_denied_before(text: str, mentions: list[Mention], at: int) -> bool:
    """Whether a "not" stands before a letter, or before the list that it is one of: "not A, C or D, but B"."""
    first = at
    while first > max(0, at - _LONGEST_LIST) and _LISTED.fullmatch(
        text, mentions[first - 1].end, mentions[first].start
    ):
        first -= 1
    return bool(_DENIED_BEFORE.search(_find_clause(text, mentions[first])[0]))


def _is_summed_up(text: str, mentions: list[Mention], at: int) -> bool:
    """Whether a letter is part of what an earlier one says: "D (both A and B)"."""
    first_end, start = mentions[0].end, mentions[at].start
    if _SUMS_UP.match(text, first_end) and not _NEXT_SENTENCE.search(text, first_end, start):
        return True
    between = text[mentions[at - 1].end : start]
    return "(" in between and bool(_SUMMED_UP.search(between))


def _is_statement(before: str, clause: str) -> bool:
    """Whether a further letter stands in a sentence about it, and not in a list with the one before."""
    return (
        bool(
            _VERB.search(clause)
            or _GIVES_REASON.match(before)
            or (_REASON_ABOUT.fullmatch(before) and _SUBJECT.search(clause))
        )
        or len(re.findall(r"[A-Za-z]{3,}", before)) >= 3
    )


def _find_clause(text: str, mention: Mention) -> tuple[str, str]:
    """Finds what stands in the clause before and behind a mention."""
    window = text[max(0, mention.start - _CLAUSE_CHARS) : mention.start]
    before = window
    for found in _CLAUSE_ENDS.finditer(window):
        before = window[found.start() if found.group().strip(" ,").isalpha() else found.end() :]
    return before, _CLAUSE_ENDS.split(text[mention.end : mention.end + _CLAUSE_CHARS], maxsplit=1)[0]
