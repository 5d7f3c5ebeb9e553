"""Rule for numeric answers: within 0.15% of the gold, sign, scale and unit included.

Source: the 0.15% of DocMath-Eval as used by QwenLong-L1 (recipe section 4). Not taken over: equality up to any power
of ten, up to sign, or after rounding up to three decimals (`compat = "qwenlong_l1"` keeps those). Decided:

- A scale word is part of the number: "4.2 million" is 4,200,000, and "60.5" is not "60.5 million", as in the TAT-QA
  metric (Zhu et al. 2021).
- A unit may be left out, because golds do so: "40" answers "40 percent". One that contradicts the gold's fails: "$40".
- "0.12" is not "12%". A percent sign is a unit like any other: the gold 6.45 means 6.45%, and a rule that took a
  hundredth for the same would pass an answer that is wrong by a factor of 100.
- Words before the number are read over ("the total was 5"), unless they could change it: "under 5", "a decrease of 5".
"""

from __future__ import annotations

import re
from decimal import Decimal

from hybridflow.config.reward_sections import THINKING_TAGS
from hybridflow.rewards.docqa import verify_docqa
from hybridflow.rewards.extract import extract_answer, extract_gold
from hybridflow.rewards.findings import Finding, no_answer, to_verdict
from hybridflow.rewards.normalise import split_words
from hybridflow.rewards.number_forms import TIME
from hybridflow.rewards.numbers import Quantity, are_close, parse_quantity
from hybridflow.rewards.thinking import Tags
from hybridflow.rewards.units import PARTS, can_be_same, may_be_left_out, units_in
from hybridflow.rewards.wording import ALTERNATIVES, COMPARISONS, MONTHS, NEGATIONS, SIGN_WORDS, SMALL_WORDS
from hybridflow.types import Verdict

RULE = "docmath_number"
RELATIVE_TOLERANCE = Decimal("0.0015")
_MOST_WORDS_BEFORE = 12
_NUMBER_BEGINS = re.compile(r"(?<![^\s(])(?:[-+\u2212\u2013(]|(?:us|s|a|c|hk|nz)?[$£€¥])*\.?\d", re.IGNORECASE)
_TIME_FIRST = re.compile(rf"(?:{TIME.pattern}),? ", re.IGNORECASE)
_CHANGE_A_NUMBER = NEGATIONS | COMPARISONS | SIGN_WORDS | ALTERNATIVES | MONTHS.keys()


def verify_docmath(text: str, ground_truth: str, thinking_tags: Tags = THINKING_TAGS) -> Verdict:
    """1.0 where the extracted number is within 0.15% of the gold, else 0.0.

    A gold that is no number is judged by the docqa rule.
    """
    gold = parse_quantity(extract_gold(ground_truth).text)
    if gold is None:
        return verify_docqa(text, ground_truth, thinking_tags)
    answer = extract_answer(text, thinking_tags)
    if not answer.text:
        return no_answer(str(gold))
    if answer.is_taken_back:
        why = "what follows the first sentence denies it, or offers another answer"
        return to_verdict(Finding(False, RULE, why, "", str(gold)), answer.text)
    return to_verdict(_find(answer.text, gold), answer.text)


def _find(answer: str, gold: Quantity) -> Finding:
    said = parse_quantity(answer) or _parse_behind_words(answer)
    if said is None:
        return Finding(False, RULE, f"no single number in {answer[:80]!r}", "", str(gold))
    forms = (str(said), str(gold))
    if said.unit != gold.unit and said.unit and gold.unit:
        said, gold = _in_whole_units(said), _in_whole_units(gold)
    if not can_be_same(said.unit, gold.unit) or _counts_another_thing(said, gold):
        return Finding(False, RULE, f"{forms[0]} and {forms[1]} have different units", *forms)
    is_close = are_close(said.value, gold.value, RELATIVE_TOLERANCE)
    numbers = f"{float(said.value):.12g} is {'' if is_close else 'not '}within {RELATIVE_TOLERANCE:%} of"
    return Finding(is_close, RULE, f"{numbers} {float(gold.value):.12g}", *forms)


def _parse_behind_words(answer: str) -> Quantity | None:
    """The number of a short sentence such as "the total was $5 million", which holds one number."""
    answer = _TIME_FIRST.sub("", answer, count=1) if _TIME_FIRST.match(answer) else answer
    found = _NUMBER_BEGINS.search(answer[:200])
    if found is None:
        return None
    before = [word.text for word in split_words(answer[: found.start()])]
    if len(before) > _MOST_WORDS_BEFORE or _CHANGE_A_NUMBER.intersection(before):
        return None
    return parse_quantity(answer[found.start() :])


def _in_whole_units(quantity: Quantity) -> Quantity:
    """Basis points and per mille as percent, cents as dollars or euros; anything else as it is."""
    if (part := PARTS.get(quantity.unit)) is None:
        return quantity
    number, whole = part
    return Quantity(quantity.value / number, whole, quantity.rest)


def _counts_another_thing(said: Quantity, gold: Quantity) -> bool:
    """Whether a gold of years, miles and the like is answered with a number of something else: "12 employees"."""
    if said.unit or may_be_left_out(gold.unit):
        return False
    words = [word.text for word in split_words(said.rest)]
    return bool(words) and words[0] not in SMALL_WORDS and not any(can_be_same(u, gold.unit) for u in units_in(words))
