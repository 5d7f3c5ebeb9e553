"""The rules of the released QwenLong-L1 code, to the letter, for `compat = "qwenlong_l1"`: parity, not quality.

Source: recipe section 4; QwenLong-L1 at 38d0806, `verl/verl/utils/reward_score/{docqa,docmath,long}.py`, without the
judge. Its holes are kept on purpose: nothing counts without `</think>`; docqa knows "the answer is" in lower case
alone, and passes either text inside the other, so an answer of articles or punctuation passes; docmath reads digits
directly behind the first "the answer is", loses every unit and scale word, and is blind to powers of ten and to sign;
the choice is the first one named, and "Apple" names A.

Departures, none of which changes a verdict that the released code reaches on its own data:

- Nothing is evaluated. What its `eval` would be given is only ever a sign, digits and points, read here as Python reads
  such a literal: 0 where that is a syntax error.
- A gold that is stored without its sentence is read as if it stood in one (there: an exception, or 0 for everyone); one
  that says nothing is Unknown.
"""

from __future__ import annotations

import math
import re
import string

from hybridflow.rewards.rules.rule_result import NO_ANSWER_RULE, RuleResult, bad_gold, to_verdict
from hybridflow.types import Verdict

CHOICE_RULE = "qwenlong_l1_choice"
_PHRASE = "the answer is"
_CHOICE_PHRASE = "The correct answer is"
_DROPPED = ("<\uff5cAssistant\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>")
_BEFORE_NUMBER = "=≈`%$\u00b0£€¥-"
_NUMBER = re.compile(f"{_PHRASE} ({''.join(re.escape(char) + '?' for char in _BEFORE_NUMBER)}[0-9.,]+)", re.IGNORECASE)
_LITERAL = re.compile(r"-?(?:(?P<integer>0+|[1-9][0-9]*)|[0-9]+\.[0-9]*|\.[0-9]+)")
_TOLERANCE = 0.0015
_MAX_DIGITS = 4300
"""Python refuses to read a longer whole number, so the released code takes it for 0."""
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def verify_docqa(text: str, ground_truth: str) -> Verdict:
    """1.0 where either normalised text stands inside the other."""
    rule = "qwenlong_l1_docqa"
    is_sentence = _PHRASE in ground_truth
    gold = _normalise(_answer_sentence(ground_truth if is_sentence else f"{_PHRASE} {ground_truth}"))
    if not gold:
        return bad_gold(ground_truth, "is empty after normalisation")
    extracted = _answer_sentence(_after_thinking(text))
    if not extracted:
        return _nothing(gold)
    predicted = _normalise(extracted)
    passes = gold in predicted or predicted in gold
    why = "one text stands in the other" if passes else "neither text stands in the other"
    return to_verdict(RuleResult(passes, rule, why, predicted, gold), extracted)


def verify_docmath(text: str, ground_truth: str) -> Verdict:
    """1.0 where the two numbers agree in one of the five ways of `_agree`."""
    rule = "qwenlong_l1_docmath"
    gold = _find_number(ground_truth) or _find_number(f"{_PHRASE} {ground_truth.strip()}")
    if not gold:
        return bad_gold(ground_truth, "holds no number behind 'the answer is'")
    extracted = _find_number(_after_thinking(text))
    if not extracted:
        return _nothing(gold)
    predicted, wanted = _evaluate(extracted), _evaluate(gold)
    passes = _agree(predicted, wanted)
    why = (
        f"{extracted[:40]} {'agrees' if passes else 'does not agree'} with {gold[:40]}, sign and powers of ten ignored"
    )
    return to_verdict(RuleResult(passes, rule, why, extracted, gold), extracted)


def verify_multiple_choice(text: str, ground_truth: str) -> Verdict:
    """1.0 where both name the same letter first."""
    gold = _find_choice(ground_truth) or _find_choice(f"{_CHOICE_PHRASE} {ground_truth.strip()}")
    if not gold:
        return bad_gold(ground_truth, "names none of the choices A-D")
    extracted = _find_choice(_after_thinking(text))
    if not extracted:
        return _nothing(gold)
    verb = "is" if extracted == gold else "is not"
    return to_verdict(
        RuleResult(extracted == gold, CHOICE_RULE, f"{extracted} {verb} {gold}", extracted, gold), extracted
    )


def _nothing(gold: str) -> Verdict:
    why = "no answer where the released code looks for one"
    return to_verdict(RuleResult(False, NO_ANSWER_RULE, why, "", gold), "")


def _after_thinking(text: str) -> str:
    _, closed, tail = text.rpartition("</think>")
    return tail.strip() if closed else ""


def _answer_sentence(text: str) -> str:
    """Finds what follows the last "the answer is", in this case alone; "" where that is not there."""
    _, found, answer = text.replace("*", "").rpartition(_PHRASE)
    if not found:
        return ""
    answer = answer.strip()
    for token in _DROPPED:
        answer = answer.replace(token, "")
    return answer.strip().strip(".").strip()


def _normalise(text: str) -> str:
    plain = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", plain).split())


def _find_number(text: str) -> str:
    """The number behind the first "the answer is", with its signs and without commas; "" where none is there."""
    found = _NUMBER.search(text.replace("*", ""))
    return found[1].replace(",", "").rstrip(".") if found else ""


def _evaluate(told: str) -> int | float:
    """The value of what `_find_number` gave, as the released normalisation and Python's `eval` come to it."""
    plain = re.sub("[=≈`%$\u00b0£€¥]", "", told)
    if plain.startswith("."):
        plain = plain[2:] if plain.startswith("..") else plain[1:]
    found = _LITERAL.fullmatch(plain)
    if found is None or (found["integer"] and len(found["integer"]) > _MAX_DIGITS):
        return 0
    return int(plain) if found["integer"] else float(plain)


def _agree(predicted: float, gold: float) -> bool:
    """Whether they are equal up to a power of ten, within 0.15% after x100, x1000 or x100000, or as they are.

    Before the last of these, whether they are equal rounded up to three decimals. All but the last compare absolute
    values, and all compute in floats as the released code does.
    """
    larger, smaller = max(abs(gold), abs(predicted)), min(abs(gold), abs(predicted))
    try:
        if larger != 0 and smaller != 0:
            powers = math.log10(larger) - math.log10(smaller)
            if int(powers) == powers:
                return True
        for share, factor in ((50, 100), (500, 1000), (50_000, 100_000)):
            if smaller <= larger / share and _is_within(smaller * factor, larger):
                return True
        if _round_up(larger) == _round_up(smaller):
            return True
        return _is_within(predicted, gold)
    except OverflowError:
        return False


def _is_within(predicted: float, gold: float) -> bool:
    tolerance = abs(gold) * _TOLERANCE
    return gold - tolerance <= predicted <= gold + tolerance


def _round_up(number: float) -> float:
    return math.ceil(number * 1000) / 1000


def _find_choice(text: str) -> str:
    """The letter behind the first phrase with brackets, else behind the first without; "" where none is there."""
    plain = text.replace("*", "")
    found = re.search(rf"{_CHOICE_PHRASE} \(([A-D])\)", plain) or re.search(rf"{_CHOICE_PHRASE} ([A-D])", plain)
    return found[1] if found else ""
