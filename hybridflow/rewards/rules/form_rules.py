"""Answers whose form decides: dates, plain numbers, lists, names.

Each rule gives None where it does not apply.
"""

from __future__ import annotations

import re
from decimal import Decimal

from hybridflow.rewards.numbers.dates import Date, parse_date, parse_quarter, parse_time
from hybridflow.rewards.numbers.quantities import EXACT, agree, read_gold, read_stated
from hybridflow.rewards.numbers.read_number import are_same, parse_range
from hybridflow.rewards.rules.rule_result import RuleResult
from hybridflow.rewards.text.asides import drop_asides
from hybridflow.rewards.text.characters import unify
from hybridflow.rewards.text.lexicon import ALTERNATIVES, COMPARISONS, NEGATIONS, NEUTRAL
from hybridflow.rewards.text.normalise import normalise
from hybridflow.rewards.text.number_words import NUMBER_WORDS, read_words

_ENUMERATOR = re.compile(r"(?:(?<=[\n,;])|\A)\s{0,8}(?:[-*\u2022]|\(?\d{1,2}[.)]|\([ivxa-h]{1,4}\))\s")
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_BETWEEN_ITEMS = re.compile("[,;|/\n\u3001\u2022]|\\b(?:and|or)\\b|(?<=\\s)&(?=\\s)|[和与及]", re.IGNORECASE)
_NO_ITEM = re.compile(r"\brespectively\b|^\s{0,4}both\b", re.IGNORECASE)
_LIST_LEAD = re.compile(r"[^:\n]{0,80}:\s{0,4}\n?(?=\s{0,8}(?:[-*\u2022]|\(?\d{1,2}[.)])\s)")
_COUNTING_LEAD = re.compile(r"[^:\n]{0,80}:\s{0,4}(?=\S)")
_OR = re.compile(r"\bor\b|或", re.IGNORECASE)


def find_date(predicted: str, gold: str) -> RuleResult | None:
    """For two dates: the same day, or month, as precise as the gold is; a date answers for its year too."""
    said = parse_date(predicted) or parse_date(drop_asides(predicted))
    if said is None:
        return None
    wanted = parse_date(gold)
    if wanted is None:
        if not re.fullmatch(r"\s*\d{4}\s*", gold):
            return None
        is_year = said.year == int(gold)
        return RuleResult(
            is_year, "docqa_date", f"{said} is {'' if is_year else 'not '}in {gold}", str(said), gold.strip()
        )
    return _compare_dates(said, wanted)


def _compare_dates(said: Date, wanted: Date) -> RuleResult:
    verb = "is" if said == wanted else "is not"
    return RuleResult(said == wanted, "docqa_date", f"{said} {verb} {wanted}", str(said), str(wanted))


def find_quarter(predicted: str, gold: str) -> RuleResult | None:
    """For two quarters of a year: the same one, in figures or in words."""
    said, wanted = parse_quarter(drop_asides(predicted)), parse_quarter(gold)
    if said is None or wanted is None:
        return None
    verb = "is" if said == wanted else "is not"
    return RuleResult(said == wanted, "docqa_quarter", f"{said} {verb} {wanted}", str(said), str(wanted))


def find_time(predicted: str, gold: str) -> RuleResult | None:
    """For two times of day: the same minute."""
    said, wanted = (parse_time(drop_asides(text)) for text in (predicted, gold))
    if said is None or wanted is None:
        return None
    shown = [f"{minutes // 60:02d}:{minutes % 60:02d}" for minutes in (said, wanted)]
    return RuleResult(
        said == wanted, "docqa_time", f"{shown[0]} {'is' if said == wanted else 'is not'} {shown[1]}", *shown
    )


def find_number(predicted: str, gold: str, tolerance: Decimal = EXACT, rule: str = "docqa_number") -> RuleResult | None:
    """For a gold that is a number with its unit and nothing else: the same one, in whatever notation (`quantities`).

    No tolerance for free text: a year or a count that is 0.1% off is another one.
    """
    wanted = read_gold(gold)
    if wanted is None:
        return None
    stated = read_stated(predicted, wanted)
    said = stated.quantity
    if said is None:
        return RuleResult(False, rule, f"{stated.unaccounted[0]} in {predicted[:80]!r}", "", str(wanted))
    forms = (str(said), str(wanted))
    if stated.unaccounted:
        left = ", ".join(map(repr, stated.unaccounted[:8]))
        return RuleResult(False, rule, f"{left} beside the number {forms[0]}", *forms)
    is_same = agree(said, wanted, tolerance)
    verb = "is" if is_same else "is not"
    within = f"within {tolerance:%} of " if tolerance else ""
    return RuleResult(is_same, rule, f"{forms[0]} {verb} {within}{forms[1]}", *forms)


def find_range(predicted: str, gold: str) -> RuleResult | None:
    """For a gold that is a range of numbers: the same ends."""
    wanted = parse_range(gold)
    if wanted is None or (said := parse_range(predicted)) is None:
        return None
    is_same = are_same(said, wanted)
    return RuleResult(
        is_same, "docqa_range", f"{said} {'is' if is_same else 'is not'} {wanted}", str(said), str(wanted)
    )


def find_list(predicted: str, gold: str) -> RuleResult | None:
    """Passes for the gold's items, all and no others, in any order; numbers and "respectively" keep their order."""
    wanted = _items(gold)
    said = _items(_drop_counting_lead(drop_asides(predicted), len(wanted)))
    if len(wanted) < 2 or len(said) != len(wanted) or bool(_OR.search(predicted)) != bool(_OR.search(gold)):
        return None
    is_ordered = any(map(str.isdigit, gold)) or "respectively" in gold.lower() + predicted.lower()
    if said != wanted and (is_ordered or sorted(said) != sorted(wanted)):
        return None
    return RuleResult(True, "docqa_list", "the same items", "; ".join(said), "; ".join(wanted))


def find_inverted_name(predicted: str, gold: str) -> RuleResult | None:
    """Passes for "Obama, Barack" where the gold is "Barack Obama", and the other way round."""
    forms = (normalise(predicted), normalise(gold))
    for inverted, straight in ((predicted, forms[1]), (gold, forms[0])):
        family, comma, given = unify(inverted).partition(",")
        is_name = comma and family.strip() and given.strip() and not re.search(r"[,\d]", given + family)
        if is_name and normalise(f"{given} {family}") == straight:
            return RuleResult(True, "docqa_name", "the same name, family name first", *forms)
    return None


def _items(text: str) -> list[str]:
    plain = _drop_list_lead(unify(text))
    plain = _THOUSANDS_COMMA.sub("", _ENUMERATOR.sub(" ", plain))
    return [item for piece in _BETWEEN_ITEMS.split(plain) if (item := normalise(_NO_ITEM.sub("", piece)))]


def _drop_counting_lead(text: str, num_items: int) -> str:
    """`text` without the words before a list that tell how many items it has: "three departments are affected:"."""
    found = _COUNTING_LEAD.match(text)
    if found is None:
        return text
    words = normalise(found.group()).split()
    counts = [word for word in words if NUMBER_WORDS.fullmatch(word) or word.isdigit()]
    spoken = read_words(counts[0], 0) if len(counts) == 1 else None
    count = spoken.value if spoken else int(counts[0]) if len(counts) == 1 and counts[0].isdigit() else None
    is_lead = count == num_items and not (NEGATIONS | ALTERNATIVES | COMPARISONS).intersection(words)
    return text[found.end() :] if is_lead else text


def _drop_list_lead(text: str) -> str:
    """`text` without the words before a list that is set below them: "there are three countries:"."""
    found = _LIST_LEAD.match(text)
    if found is None:
        return text
    words = normalise(found.group()).split()
    names = [word for word in words if word not in NEUTRAL and not NUMBER_WORDS.fullmatch(word) and not word.isdigit()]
    is_lead = len(names) <= 3 and not (NEGATIONS | ALTERNATIVES | COMPARISONS).intersection(words)
    return text[found.end() :] if is_lead else text
