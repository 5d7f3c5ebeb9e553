"""Rule for questions with four choices: the one letter that the answer asserts is the gold's. Source: recipe section 4.

The answer stands behind a mark (`extract`), or in a sentence that chooses ("I pick (C)", "Option B is correct",
"本题选D"). Which of its letters it asserts is for `choice_letters` to say; more than one is no answer. Where nothing
marks the answer, the last sentence may name one choice in brackets, or be "Therefore, C."; a letter without a sentence
is no answer.
"""

from __future__ import annotations

import re

from hybridflow.config.reward_sections import THINKING_TAGS
from hybridflow.rewards.extraction.extract import MARK, MOST_CHARS, behind_mark, find_last, strip_outer
from hybridflow.rewards.rules.choice_letters import DENIES, find_asserted
from hybridflow.rewards.rules.rule_result import RuleResult, bad_gold, no_answer, to_verdict
from hybridflow.rewards.text.characters import remember, unify
from hybridflow.rewards.text.thinking import Tags, after_thinking
from hybridflow.types import Verdict

RULE = "multiple_choice"
_MARK = re.compile(
    rf"""{MARK.pattern}
    | \b (?:the|my|our) \s{{1,3}} (?:(?:correct|right|final|best) \s{{1,3}}){{1,2}}
      (?:option|choice|letter|statement|one) \s{{1,3}} (?:is|was|would\sbe|should\sbe) \b
    | ^ [^\w\n]{{0,8}} (?:correct|right|final|chosen) \s (?:option|choice|letter) [*_\s]{{0,4}} :
    | (?:正确|正確)?答案 (?=不是\s?[A-D])
    | \b my \s{{1,3}} (?:choice|pick|selection|option|vote) \s{{1,3}} (?:is|would\sbe) \b
    | (?<![不别勿没非未]) (?:[故此以应選选]|答案|应该|應該|本题|本題|我|因此|所以) \s? [选選] [择擇项項]? :?
    | (?:正确|正確)(?:的)?(?:选项|選項|答案) \s? (?:是|为|為|:) :?
    """,
    MARK.flags,
)
_CHOOSES = re.compile(
    r"\bi(?:'d| would| will|'ll)?(?: have to| therefore| thus)? (?:choose|pick|select|go with|go for|answer|chose"
    r"|picked"
    r"|opt for)\b[ :]{0,3}|\b(?:select|choose|pick)(?:ing)? (?=\(?[A-D]\b|option)|[选選][择擇]?(?=\s?[(]?[A-D])",
    re.IGNORECASE,
)
_REFUSES = re.compile(
    r"(?:\b(?:not|never|cannot|without|avoid|rather than|instead of|than|no reason to|wrong to|refuse[sd]? to)|n't)"
    r"\s(?:\w{1,12}\s){0,3}\Z|[不别勿没非未][^\s,.;:!?\u3002]{0,6}\Z",
    re.IGNORECASE,
)
"""Before a verb that chooses: "I would not pick D", "不能选B"."""
_REFUSES_CHARS = 60
_IS_RIGHT = re.compile(
    r"(?:^|(?<=[.!?\n,:\u3002]))[\s*_]{0,4}(?:(?i:so|thus|therefore|hence|clearly|only),?\s{1,2}|[只仅]有|因此|所以|故)?"
    r"(?P<letter>(?i:(?:the )?(?:option|choice|answer|letter|statement) )?[*_]{0,2}[(\[]?[A-D][)\]]?[*_]{0,2}"
    r"|选项[A-D]|[A-D]项)"
    r"\s?(?:(?i:\s?(?:is|was|must be|would be)\s{1,2}(?:therefore |thus |clearly )?(?:the\s)?(?:correct|right|best"
    r"|final|answer)\b)"
    r"|(?:是|为)?(?:正确|对)(?:的)?)",
    re.MULTILINE,
)
_IN_BRACKETS = re.compile(r"\(\s{0,3}([A-D])\s{0,3}\)")
_CONCLUDES = re.compile(
    r"[\s*_]{0,4}(?:so|thus|therefore|hence)\b,?\s?:?([\s*_\"'`(\[]{0,6}[A-D][\s*_\"'`)\].!]{0,6})", re.IGNORECASE
)
"""A conclusion that is a letter alone: "Therefore, C." """
_COPIED = re.compile(r"\n\s{0,4}\([A-D]\)[^\n]{0,300}\n\s{0,4}\([B-D]\)[^\n]{0,300}\s{0,8}\Z")
"""The options of the question at the end, one a line."""
_SENTENCE_ENDS = re.compile(r"[.!?]\s|[\u3002\n]")


def verify_multiple_choice(text: str, ground_truth: str, thinking_tags: Tags = THINKING_TAGS) -> Verdict:
    """1.0 where the extracted letter is the gold letter, else 0.0; Unknown where the gold names none of A-D."""
    gold = extract_gold_choice(ground_truth)
    if not gold:
        return bad_gold(ground_truth, "names none of the choices A-D")
    extracted = extract_choice(text, thinking_tags)
    if not extracted:
        return no_answer(gold, "one choice A-D")
    verb = "is" if extracted == gold else "is not"
    return to_verdict(RuleResult(extracted == gold, RULE, f"{extracted} {verb} {gold}", extracted, gold), extracted)


def extract_choice(text: str, tags: Tags = THINKING_TAGS) -> str:
    """The letter A-D that the visible text commits to; "" where there is none, or more than one."""
    shown = unify(after_thinking(text, tags))
    told = behind_mark(shown, _MARK)
    start = -1 if told is None else len(shown) - len(told)
    chosen = find_last(_IS_RIGHT, shown)
    if chosen is not None and chosen.start() >= start:
        return find_asserted(f"{chosen['letter']} {shown[chosen.end() :][:MOST_CHARS]}")
    return _choose_without_mark(shown) if told is None else find_asserted(told[:MOST_CHARS])


@remember
def extract_gold_choice(ground_truth: str) -> str:
    """The gold letter: "The correct answer is (B)", "(B)", "b", "B." or "B. Apple"; "" where there is none."""
    told = ground_truth[:MOST_CHARS]
    bare = strip_outer(unify(told))
    if re.fullmatch("[A-Da-d]", bare):
        return bare.upper()
    return extract_choice(told, ()) or find_asserted(bare)


def _choose_without_mark(shown: str) -> str:
    """The letter of a sentence that chooses, or that the last sentence concludes with or has in brackets."""
    chosen, is_refused = None, False
    for found in _CHOOSES.finditer(shown):
        if _REFUSES.search(shown[max(0, found.start() - _REFUSES_CHARS) : found.start()]):
            is_refused = True
        else:
            chosen = found
    if chosen is not None and (letter := find_asserted(shown[chosen.end() :][:MOST_CHARS])):
        return letter
    if is_refused:
        return ""
    last, end = "", 0
    for found in _SENTENCE_ENDS.finditer(shown):
        last = shown[end : found.start()] if shown[end : found.start()].strip() else last
        end = found.end()
    last = shown[end:] if shown[end:].strip() else last
    if concluded := _CONCLUDES.fullmatch(last):
        return find_asserted(concluded[1])
    if _COPIED.search(shown):
        return ""
    letters = set(_IN_BRACKETS.findall(last))
    return letters.pop() if len(letters) == 1 and not DENIES.search(last) else ""
