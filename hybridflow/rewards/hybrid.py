"""One verdict of rule and judge: reward = max(rule, judge).

Source: QwenLong-L1, r = max(r_rule, r_LLM) (recipe section 4).

The judge is asked only where it can change the reward: the rule gave less than 1, and there is an answer to look at. A
choice among four letters is never judged, as in the released code: it is right or it is not. Where several verifiers
make the reward (`functions`), the judge decides on the part of the rule among them, else on their mean.
"""

from __future__ import annotations

import msgspec

from hybridflow.rewards import multiple_choice, qwenlong_l1
from hybridflow.rewards.judge_vote import Vote
from hybridflow.rewards.normalise import normalise
from hybridflow.types import Scored, Unknown, Verdict

UNJUDGED_RULES = frozenset({multiple_choice.RULE, qwenlong_l1.CHOICE_RULE})


def needs_judge(rule: Verdict) -> bool:
    """Whether a judge is to be asked: Scored below 1, with an answer that says something, and no choice of letters.

    An Unknown rule has no gold to show to a judge, or a verifier to be mended: it stays unknown.
    """
    return (
        isinstance(rule, Scored)
        and _judged_value(rule) < 1.0
        and rule.judge_share > 0
        and rule.rule not in UNJUDGED_RULES
        and bool(normalise(rule.extracted))
    )


def combine(rule: Verdict, vote: Vote, judge: str, why: str) -> Verdict:
    """The verdict of both, for a rule verdict that `needs_judge` (any other is returned as it is).

    max(rule, 1) for yes, of the part that the judge decides on; the rule's own value for no. Unknown where the judge
    did not decide: it might have said yes, so the rule's value would be a guess.

    Args:
        judge: Its name, for the record.
        why: What it gave as its reason, or why it did not decide.
    """
    if not isinstance(rule, Scored) or not needs_judge(rule):
        return rule
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
    """What the judge may raise to 1: the whole, or the part of the rule among several verifiers."""
    return rule.parts[rule.judged_part] if rule.judged_part else rule.value
