"""Rule for numeric answers: within 0.15% of the gold, sign and scale included.

Source: the 0.15% of DocMath-Eval as used by QwenLong-L1 (recipe section 4). Not taken over: equality up to any power
of ten, up to sign, or after rounding up to three decimals. A bare "60.5" does not match "60.5 million": the scale is
part of the answer, as in the TAT-QA metric (Zhu et al. 2021).
"""

from __future__ import annotations

from decimal import Decimal

from hybridflow.rewards.docqa import verify_docqa
from hybridflow.rewards.extract import extract_answer, extract_gold
from hybridflow.rewards.numbers import are_close, parse_number
from hybridflow.types import Scored, Verdict

RULE = "docmath_number"
RELATIVE_TOLERANCE = Decimal("0.0015")


def verify_docmath(text: str, ground_truth: str) -> Verdict:
    """1.0 where the extracted number is within 0.15% of the gold, else 0.0.

    A gold that is no number is judged by the docqa rule.
    """
    gold = parse_number(extract_gold(ground_truth))
    if gold is None:
        return verify_docqa(text, ground_truth)
    extracted = extract_answer(text)
    predicted = parse_number(extracted)
    if predicted is None:
        why = f"no single number in {extracted[:80]!r}" if extracted else "no answer found after 'the answer is'"
        return Scored(value=0.0, rule=RULE, extracted=extracted, why=why)
    is_equal = are_close(predicted, gold, RELATIVE_TOLERANCE)
    why = f"{float(predicted):.12g} is {'' if is_equal else 'not '}within {RELATIVE_TOLERANCE:%} of {float(gold):.12g}"
    return Scored(value=float(is_equal), rule=RULE, extracted=extracted, why=why)
