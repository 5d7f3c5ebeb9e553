"""The judge's answer, read strictly, and one verdict of rule and judge: reward = max(rule, judge).

Source: QwenLong-L1, r = max(r_rule, r_LLM) (recipe section 4). The released code takes any "YES" in the judge's text,
so an explanation that holds the word passes. Here the answer is YES, NO, or unknown, which is never NO: the verdict is
the last line behind the thinking, where it is the mark `[[YES]]` or `[[NO]]` and nothing else; bold or code around it
and a full stop change nothing. A mark in a sentence is none ("so [[YES]] is not warranted"), and an answer whose
thought was cut off has none.

The judge is asked only where it can change the reward: the rule gave less than 1, and there is an answer to look at. A
choice among four letters is never judged, as in the released code: it is right or it is not. Where several verifiers
make the reward (`several`), the judge decides on the part of the rule among them, else on their mean.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from hybridflow.config.reward_sections import THINKING_TAGS
from hybridflow.rewards.extraction.extract import extract_answer, extract_gold
from hybridflow.rewards.judge_prompt import MAX_ANSWER_CHARS, NO, YES
from hybridflow.rewards.rules import multiple_choice, qwenlong_l1
from hybridflow.rewards.rules.rule_result import NO_ANSWER_RULE
from hybridflow.rewards.text.normalise import normalise
from hybridflow.rewards.text.thinking import Tags, after_thinking
from hybridflow.types import Scored, Unknown, Verdict

Vote = Literal["yes", "no", "unknown"]

UNJUDGED_RULES = frozenset({multiple_choice.RULE, qwenlong_l1.CHOICE_RULE})

_VERDICT = re.compile(rf"[ \t*_`]{{0,8}}({re.escape(YES)}|{re.escape(NO)})[ \t*_`]{{0,8}}\.?[ \t*_`]{{0,8}}")


def parse_vote(answer: str, tags: Tags = THINKING_TAGS) -> Vote:
    """The verdict of one whole answer of a judge; `tags` mark its thoughts.

    Example: parse_vote("Both name the same city.\\n[[YES]]") == "yes"
    """
    last_line = after_thinking(answer, tags).rstrip().rpartition("\n")[2]
    found = _VERDICT.fullmatch(last_line)
    if found is None:
        return "unknown"
    return "yes" if found[1] == YES else "no"


def decide(votes: Sequence[Vote], num_asked: int) -> Vote:
    """The vote of more than half of `num_asked`; unknown while neither side has as many, or where it cannot have.

    Votes that are unknown, or were not given in time, count for neither side: two YES of three asked are YES, one YES
    and two unknown are unknown.
    """
    if len(votes) > num_asked:
        raise ValueError(f"{len(votes)} votes, but {num_asked} were asked for")
    for side in ("yes", "no"):
        if 2 * sum(vote == side for vote in votes) > num_asked:
            return side
    return "unknown"


def find_prediction(rule: Verdict, response: str, tags: Tags = THINKING_TAGS) -> str:
    """The answer that a judge is to compare with the gold; "" where it is not to be asked.

    That is what the rule extracted. A verifier of one's own may extract nothing: then the answer behind the last mark
    of the response, else all that follows the thinking, of which the judge sees the end.

    An Unknown rule has no gold to show to a judge, or a verifier to be mended: it stays unknown.
    """
    if not isinstance(rule, Scored) or rule.rule in UNJUDGED_RULES:
        return ""
    if _judged_value(rule) >= 1.0 or rule.judge_share <= 0:
        return ""
    if rule.extracted or rule.rule == NO_ANSWER_RULE:
        return rule.extracted if normalise(rule.extracted) else ""
    if answer := extract_answer(response, tags).text:
        return answer
    shown = after_thinking(response, tags).strip()
    return shown if len(shown) <= MAX_ANSWER_CHARS else f"(cut) ... {shown[-MAX_ANSWER_CHARS + len('(cut) ... ') :]}"


def told_to_judge(golds: Sequence[str]) -> str:
    """The bare gold answers as one text."""
    return " or ".join(extract_gold(gold).text or gold for gold in golds)


def combine(rule: Scored, vote: Vote, judge: str, why: str) -> Verdict:
    """The verdict of both, for a rule verdict with a `find_prediction`.

    max(rule, 1) for yes, of the part that the judge decides on; the rule's own value for no. Unknown where the judge
    did not decide: it might have said yes, so the rule's value would be a guess.

    Args:
        judge: Its name, for the record.
        why: What it gave as its reason, or why it did not decide.
    """
    if vote == "unknown":
        return Unknown(why=f"the rule {rule.rule} gave {rule.value:g}, and the judge {judge} did not decide: {why}")
    value, parts = rule.value, rule.parts
    if vote == "yes":
        value = min(1.0, value + rule.judge_share * (1.0 - _judged_value(rule)))
        parts = parts | {rule.judged_part: 1.0} if rule.judged_part else parts
    return msgspec.structs.replace(
        rule,
        value=value,
        parts=parts,
        rule_value=rule.value,
        judge=judge,
        judge_vote=vote,
        why=f"{rule.why}; {judge}: {why}",
    )


def _judged_value(rule: Scored) -> float:
    """Value that the judge may raise to 1: the whole, or the part of the rule among several verifiers."""
    return rule.parts[rule.judged_part] if rule.judged_part else rule.value
