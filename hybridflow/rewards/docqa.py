"""Rule for free-text answers: exact match after normalisation.

Source: r_rule = 1[extracted == gold] of the QwenLong-L1 paper (recipe section 4). Its released code accepts either
string inside the other instead, which passes the empty answer and single letters; that is not done here.
"""

from __future__ import annotations

from hybridflow.rewards.extract import extract_answer, extract_gold
from hybridflow.rewards.normalise import normalise
from hybridflow.types import Scored, Unknown, Verdict

RULE = "docqa_exact"


def verify_docqa(text: str, ground_truth: str) -> Verdict:
    """1.0 where the extracted answer equals the gold after normalisation, else 0.0; Unknown for an empty gold."""
    gold = normalise(extract_gold(ground_truth))
    if not gold:
        return Unknown(why=f"the gold answer {ground_truth!r} is empty after normalisation: correct the data row")
    extracted = extract_answer(text)
    predicted = normalise(extracted)
    if not predicted:
        return Scored(value=0.0, rule=RULE, extracted=extracted, why="no answer found after 'the answer is'")
    if predicted == gold:
        return Scored(value=1.0, rule=RULE, extracted=extracted, why="equal after normalisation")
    return Scored(value=0.0, rule=RULE, extracted=extracted, why=f"{predicted[:80]!r} is not {gold[:80]!r}")
