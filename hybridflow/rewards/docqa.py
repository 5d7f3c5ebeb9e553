"""Rule for free-text answers.

Source: r_rule of QwenLong-L1 (recipe section 4). The paper says exact match; its released code accepts either string
inside the other, which passes the empty answer, single letters and "not Paris" (`compat = "qwenlong_l1"` keeps that).
Here an answer passes where, in this order,

1. its words equal the gold's;
2. the form decides: yes and no; dates; a gold that is a plain number, compared exactly; the items of a list; a name
   written family name first;
3. the gold's words stand as whole words in a prediction that is not much longer (`text_rules.find_within`).

Left to a judge: synonyms, "Obama" for "Barack Obama", and anything else that is less than the gold. Known limit of 3:
a second guess that only a comma or a space parts from the first ("yen, euro") looks like "Paris, France". Where answers
come from a closed vocabulary, choose `docqa_exact`.
"""

from __future__ import annotations

from hybridflow.config.reward_sections import THINKING_TAGS
from hybridflow.rewards.extract import Answer, extract_answer, extract_gold
from hybridflow.rewards.findings import Finding, bad_gold, no_answer, to_verdict
from hybridflow.rewards.form_rules import find_date, find_inverted_name, find_list, find_number, find_yes_no
from hybridflow.rewards.normalise import normalise
from hybridflow.rewards.text_rules import EQUAL, find_within, have_equal_words, have_other_currency
from hybridflow.rewards.thinking import Tags
from hybridflow.types import Verdict

TAKEN_BACK = "docqa_taken_back"


def verify_docqa(text: str, ground_truth: str, thinking_tags: Tags = THINKING_TAGS) -> Verdict:
    """1.0 where the extracted answer is the gold, as the module says, else 0.0; Unknown for an empty gold."""
    return _verify(text, ground_truth, thinking_tags, is_exact=False)


def verify_docqa_exact(text: str, ground_truth: str, thinking_tags: Tags = THINKING_TAGS) -> Verdict:
    """1.0 where the words of the extracted answer equal the gold's, else 0.0; Unknown for an empty gold."""
    return _verify(text, ground_truth, thinking_tags, is_exact=True)


def _verify(text: str, ground_truth: str, tags: Tags, *, is_exact: bool) -> Verdict:
    gold = extract_gold(ground_truth).text
    gold_form = normalise(gold)
    if not gold_form:
        return bad_gold(ground_truth, "is empty after normalisation")
    answer = extract_answer(text, tags)
    if not normalise(answer.text):
        return no_answer(gold_form)
    equal = _find_equal(answer, gold)
    return to_verdict(equal if equal.passes or is_exact else _find(answer, gold), answer.text)


def _find_equal(answer: Answer, gold: str) -> Finding:
    for reading in answer.readings:
        if have_equal_words(reading, gold) and not _differ_in_form(reading, gold):
            return Finding(True, EQUAL, "equal after normalisation", normalise(reading), normalise(gold))
    forms = (normalise(answer.text), normalise(gold))
    return Finding(False, EQUAL, f"{forms[0][:80]!r} is not {forms[1][:80]!r}", *forms)


def _differ_in_form(predicted: str, gold: str) -> bool:
    """Whether what the words leave out tells them apart: a currency sign, or a sign that stands far from its number."""
    number = find_number(predicted, gold)
    return have_other_currency(predicted, gold) or (number is not None and not number.passes)


def _find(answer: Answer, gold: str) -> Finding:
    if found := find_yes_no(answer.text, gold):
        return found
    if answer.is_taken_back:
        why = "what follows the first sentence denies it, or offers another answer"
        return Finding(False, TAKEN_BACK, why, normalise(answer.text), normalise(gold))
    if found := find_date(answer.text, gold) or find_number(answer.text, gold):
        return found
    for reading in answer.readings:
        if found := find_list(reading, gold) or find_inverted_name(reading, gold):
            return found
    return find_within(answer.text, gold)
