"""Rule for questions with four choices: the letters agree. Source: recipe section 4, `long.py`.

The letter is read where the answer stands (`extract`), with or without brackets, "option" or the text of the choice
behind it: "(B)", "B.", "b", "B) Apple", "option b)", "\\boxed{B}", "答案是Ｂ", "故选B". Two letters are no choice, and
neither is an article: "a", "A guess". Where nothing marks the answer, the last sentence may name one choice in brackets
("I pick (C)").
"""

from __future__ import annotations

import re

from hybridflow.config.reward_sections import THINKING_TAGS
from hybridflow.rewards.characters import unify
from hybridflow.rewards.extract import MARK, behind_mark, strip_outer
from hybridflow.rewards.findings import Finding, bad_gold, no_answer, to_verdict
from hybridflow.rewards.normalise import split_words
from hybridflow.rewards.thinking import Tags, after_thinking
from hybridflow.rewards.wording import NEGATIONS
from hybridflow.types import Verdict

RULE = "multiple_choice"
_MARK = re.compile(
    rf"{MARK.pattern} | (?:[故此以应]|答案)选[择项]? :? | 正确选项 [是为:] :?",
    MARK.flags,
)
_LETTER = re.compile(
    r"(?i:(?:it\sis|clearly|definitely|simply)\s)?(?P<named>(?i:(?:the\s)?(?:option|choice|letter)\s|选项?\s?))?"
    r"(?:[(\[{<]\s*(?P<bracketed>[A-Da-d])\s*[)\]}>]|(?P<closed>[A-Da-d])\)"
    r"|(?P<bare>[A-D]|(?(named)[a-d]|(?!)))(?:(?=选?项)|(?![\w'+-])))"
)
_MAY_FOLLOW_A = re.compile(
    r"[\s*_]*(?:\Z|[^\w\s]|[\u3400-\u9fff]|(?:because|since|as|for|given|based|due|is|which|in|from|with)\b)",
    re.IGNORECASE,
)
"""Behind a bare "A" that is a choice; other words make an article of it."""
_SECOND = re.compile(
    r"(?:[\s*_.?!]|(?P<joint>[,/&;\u3001和或]|(?i:or|and|no|wait|actually|option|choice)\b))+"
    r"(?:[(\[]\s*[A-Da-d]\s*[)\]]|[A-D](?![\w'+-]))"
)
"""Behind a choice: another one that is joined to it, or takes its place."""
_DENIED = re.compile(r"[\s*_]*(?:is\s|was\s|isn't\b|can(?:no|')t\b|不)", re.IGNORECASE)
"""Behind a choice: it may be said to be wrong."""
_SECOND_CHARS = 60
_IN_BRACKETS = re.compile(r"\(\s*([A-D])\s*\)")
_CLAUSE_ENDS = re.compile("[.!?;,\u3002\n]|\\b(?:because|since|as|while|whereas)\\b")
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
    return to_verdict(Finding(extracted == gold, RULE, f"{extracted} {verb} {gold}", extracted, gold), extracted)


def extract_choice(text: str, tags: Tags = THINKING_TAGS) -> str:
    """The letter A-D that the visible text commits to; "" where there is none, or more than one."""
    shown = unify(after_thinking(text, tags))
    marked = behind_mark(shown, _MARK)
    if marked is not None:
        return _letter_of(strip_outer(marked))
    last = next((piece for piece in reversed(_SENTENCE_ENDS.split(shown)) if piece.strip()), "")
    letters = set(_IN_BRACKETS.findall(last))
    is_denied = NEGATIONS.intersection(word.text for word in split_words(last))
    return letters.pop() if len(letters) == 1 and not is_denied else ""


def extract_gold_choice(ground_truth: str) -> str:
    """The gold letter: "The correct answer is (B)", "(B)", "b", "B." or "B. Apple"; "" where there is none."""
    bare = strip_outer(unify(ground_truth))
    if re.fullmatch("[A-Da-d]", bare):
        return bare.upper()
    return extract_choice(ground_truth) or _letter_of(bare)


def _letter_of(answer: str) -> str:
    if re.fullmatch("[A-Db-d]", answer):
        return answer.upper()
    found = _LETTER.match(answer)
    if found is None:
        return ""
    rest = answer[found.end() : found.end() + _SECOND_CHARS]
    second = _SECOND.match(rest)
    is_article = found["bare"] == "A" and not found["named"] and not _MAY_FOLLOW_A.match(rest)
    clause = _CLAUSE_ENDS.split(rest, maxsplit=1)[0]
    is_denied = _DENIED.match(rest) and NEGATIONS.intersection(word.text for word in split_words(clause))
    if is_article or is_denied or (second and second["joint"]):
        return ""
    return (found["bracketed"] or found["closed"] or found["bare"]).upper()
