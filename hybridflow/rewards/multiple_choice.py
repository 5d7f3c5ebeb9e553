"""Rule for questions with four choices: the letters agree. Source: recipe section 4, `long.py`."""

from __future__ import annotations

from hybridflow.rewards.extract import extract_choice, extract_gold_choice
from hybridflow.types import Scored, Unknown, Verdict

RULE = "multiple_choice"


def verify_multiple_choice(text: str, ground_truth: str) -> Verdict:
    """1.0 where the extracted letter is the gold letter, else 0.0; Unknown where the gold names none of A-D."""
    gold = extract_gold_choice(ground_truth)
    if not gold:
        return Unknown(why=f"the gold answer {ground_truth!r} names none of the choices A-D: correct the data row")
    extracted = extract_choice(text)
    if not extracted:
        return Scored(value=0.0, rule=RULE, extracted="", why="no single choice A-D found")
    verb = "is" if extracted == gold else "is not"
    return Scored(value=float(extracted == gold), rule=RULE, extracted=extracted, why=f"{extracted} {verb} {gold}")
