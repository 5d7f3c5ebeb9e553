"""Rule for numeric answers: within 0.15% of the gold, sign, scale and unit included.

Source: the 0.15% of DocMath-Eval as used by QwenLong-L1 (recipe section 4). Not taken over: equality up to any power
of ten, up to sign, or after rounding up to three decimals (`compat = "qwenlong_l1"` keeps those). Decided:

- A scale word is part of the number: "4.2 million" is 4,200,000, and "60.5" is not "60.5 million", as in the TAT-QA
  metric (Zhu et al. 2021).
- A unit may be left out, because golds do so, and so may the gold's: "40" answers "40 percent". One that contradicts
  the gold's fails: "$40", "40 employees".
- "0.12" is "12%": a fraction and its percentage are one value up to 1. "12" is not "1,200%".
- Every word beside the number is accounted for (`quantities`): "the total was 5" is 5, "half of 5" and "5 May" are not.
"""

from __future__ import annotations

from decimal import Decimal

from hybridflow.config.reward_sections import THINKING_TAGS
from hybridflow.rewards.extraction.extract import MOST_CHARS, extract_answer, extract_gold
from hybridflow.rewards.numbers.quantities import read_gold
from hybridflow.rewards.rules.docqa import find_second_thought_in, verify_docqa
from hybridflow.rewards.rules.form_rules import find_number
from hybridflow.rewards.rules.rule_result import no_answer, to_verdict
from hybridflow.rewards.text.thinking import Tags
from hybridflow.types import Verdict

RULE = "docmath_number"
RELATIVE_TOLERANCE = Decimal("0.0015")


def verify_docmath(text: str, ground_truth: str, thinking_tags: Tags = THINKING_TAGS) -> Verdict:
    """1.0 where the extracted number is within 0.15% of the gold, else 0.0.

    A gold that is no number is judged by the docqa rule.
    """
    gold = extract_gold(ground_truth).text if len(ground_truth) <= MOST_CHARS else ""
    wanted = read_gold(gold)
    if wanted is None:
        return verify_docqa(text, ground_truth, thinking_tags)
    answer = extract_answer(text, thinking_tags)
    if not answer.text:
        return no_answer(str(wanted))
    if denied := find_second_thought_in(answer, gold):
        return to_verdict(denied, answer.text)
    result = find_number(answer.text, gold, RELATIVE_TOLERANCE, RULE)
    assert result is not None, "the gold is a number"
    return to_verdict(result, answer.text)
