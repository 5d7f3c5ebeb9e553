"""Rule for free-text answers: every word of the answer is accounted for.

Source: r_rule of QwenLong-L1 (recipe section 4). The paper says exact match; its released code accepts either string
inside the other, which passes the empty answer, single letters and "not Paris" (`compat = "qwenlong_l1"` keeps that).
Here an answer passes where, in this order,

1. its words equal the gold's;
2. the form decides: yes and no; dates, quarters and times of day; numbers, compared exactly; ranges;
   the items of a list; a name written family name first;
3. the gold's words stand in it beside words that change nothing, or that tell where it stands
   (`text_rules.find_accounted`).

So one answer earns one gold: "Paris, London" is neither, and "Paris, France" is left to a judge, who knows the
question. Left to a judge as well: synonyms, "Obama" for "Barack Obama", and anything else that is more or less than
the gold.
"""

from __future__ import annotations

from hybridflow.config.reward_sections import THINKING_TAGS
from hybridflow.rewards.extraction.extract import MOST_CHARS, Answer, count_sentences, extract_answer, extract_gold
from hybridflow.rewards.rules.form_rules import (
    find_date,
    find_inverted_name,
    find_list,
    find_number,
    find_quarter,
    find_range,
    find_time,
)
from hybridflow.rewards.rules.rule_result import RuleResult, bad_gold, no_answer, to_verdict
from hybridflow.rewards.rules.text_rules import (
    EQUAL,
    are_equal_as_written,
    find_accounted,
    find_yes_no,
    have_equal_words,
    have_other_currency,
)
from hybridflow.rewards.text.asides import drop_asides
from hybridflow.rewards.text.normalise import normalise
from hybridflow.rewards.text.thinking import Tags
from hybridflow.types import Verdict

TAKEN_BACK = "docqa_taken_back"
_FORMS = (find_yes_no, find_date, find_quarter, find_time, find_range, find_number, find_list, find_inverted_name)


def verify_docqa(text: str, ground_truth: str, thinking_tags: Tags = THINKING_TAGS) -> Verdict:
    """1.0 where the extracted answer is the gold, as the module says, else 0.0; Unknown for an empty gold."""
    return _verify(text, ground_truth, thinking_tags, is_exact=False)


def verify_docqa_exact(text: str, ground_truth: str, thinking_tags: Tags = THINKING_TAGS) -> Verdict:
    """1.0 where the words of the extracted answer equal the gold's, else 0.0; Unknown for an empty gold."""
    return _verify(text, ground_truth, thinking_tags, is_exact=True)


def find_second_thought_in(answer: Answer, gold: str) -> RuleResult | None:
    """Fails an answer that what follows it takes back, or to which it adds another one."""
    if not answer.second_thought:
        return None
    why = f"{answer.second_thought[:80]!r} denies it, or offers another answer"
    return RuleResult(False, TAKEN_BACK, why, normalise(answer.text), normalise(gold))


def _verify(text: str, ground_truth: str, tags: Tags, *, is_exact: bool) -> Verdict:
    if len(ground_truth) > MOST_CHARS:
        return bad_gold(
            ground_truth, f"has {len(ground_truth):,} characters, and no answer above {MOST_CHARS:,} is read"
        )
    gold = extract_gold(ground_truth).text
    gold_form = normalise(gold)
    if not gold:
        return bad_gold(ground_truth, "says nothing")
    answer = extract_answer(text, tags, count_sentences(gold))
    if not gold_form:
        return _verify_as_written(answer, gold)
    if not normalise(answer.text):
        return no_answer(gold_form)
    equal = _find_equal(answer, gold)
    return to_verdict(equal if equal.passes or is_exact else _find(answer, gold), answer.text)


def _verify_as_written(answer: Answer, gold: str) -> Verdict:
    """For a gold of articles or marks alone, which normalisation leaves nothing of: "A", "The The", "-"."""
    is_same = are_equal_as_written(answer.text, gold)
    why = f"{answer.text[:80]!r} is {'' if is_same else 'not '}written as the gold"
    return to_verdict(RuleResult(is_same, EQUAL, why, answer.text, gold), answer.text)


def _find_equal(answer: Answer, gold: str) -> RuleResult:
    forms = (normalise(answer.text), normalise(gold))
    if answer.second_thought:
        return RuleResult(False, EQUAL, f"{answer.second_thought[:80]!r} follows it", *forms)
    for told in dict.fromkeys((answer.text, drop_asides(answer.text))):
        if have_equal_words(told, gold) and not _differ_in_form(told, gold):
            return RuleResult(True, EQUAL, "equal after normalisation", *forms)
    return RuleResult(False, EQUAL, f"{forms[0][:80]!r} is not {forms[1][:80]!r}", *forms)


def _differ_in_form(predicted: str, gold: str) -> bool:
    """Whether what the words leave out tells them apart: a currency sign, or a sign that stands far from its number."""
    number = find_number(predicted, gold) if any(map(str.isdigit, gold)) else None
    return have_other_currency(predicted, gold) or (number is not None and not number.passes)


def _find(answer: Answer, gold: str) -> RuleResult:
    if denied := find_second_thought_in(answer, gold):
        return denied
    for find in _FORMS:
        if found := find(answer.text, gold):
            return found
    return find_accounted(answer.text, gold)
