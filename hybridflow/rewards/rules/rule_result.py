"""Result of a rule on one answer, and the verdict that follows from it."""

from __future__ import annotations

from typing import NamedTuple

from hybridflow.types import Scored, Unknown

_SHOWN_CHARS = 200
"""Characters of each text in a verdict: verdicts of long answers are sent and stored too."""
NO_ANSWER_RULE = "no_answer"


class RuleResult(NamedTuple):
    """Whether an answer passes, by which rule, and why."""

    passes: bool
    rule: str
    why: str
    predicted_form: str
    gold_form: str


def to_verdict(result: RuleResult, extracted: str) -> Scored:
    """1.0 or 0.0, with all that explains it."""
    return Scored(
        value=float(result.passes),
        rule=result.rule,
        extracted=extracted,
        why=result.why,
        predicted_form=result.predicted_form[:_SHOWN_CHARS],
        gold_form=result.gold_form[:_SHOWN_CHARS],
    )


def no_answer(
    gold_form: str, looked_for: str = "an answer behind 'the answer is', '\\boxed{}' or their like"
) -> Scored:
    """0.0: the completion commits to nothing."""
    return to_verdict(RuleResult(False, NO_ANSWER_RULE, f"did not find {looked_for}", "", gold_form), "")


def bad_gold(ground_truth: str, what: str) -> Unknown:
    """Unknown: nothing can be compared with this gold answer."""
    return Unknown(why=f"the gold answer {ground_truth[:_SHOWN_CHARS]!r} {what}: correct the data row")
