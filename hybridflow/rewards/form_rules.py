"""Answers whose form decides: yes and no, dates, plain numbers, lists, names.

Each rule gives None where it does not apply.
"""

from __future__ import annotations

import re

from hybridflow.rewards.characters import unify
from hybridflow.rewards.dates import Date, parse_date
from hybridflow.rewards.findings import Finding
from hybridflow.rewards.normalise import normalise
from hybridflow.rewards.numbers import parse_quantity
from hybridflow.rewards.units import can_be_same, may_be_left_out
from hybridflow.rewards.wording import NEGATIONS, SMALL_WORDS, word_set

_POLARITY = {"yes": "yes", "是": "yes", "是的": "yes", "对": "yes"}
_POLARITY |= {"no": "no", "否": "no", "不是": "no", "不": "no"}
_OPENERS = word_set("definitely certainly clearly absolutely simply")
_SET_OFF = re.compile(r"\W*\w+\s*(?:[,.;:!(\n\u3002]|\s-)")
_ENUMERATOR = re.compile(r"(?:(?<=[\n,;])|\A)\s{0,8}(?:[-*\u2022]|\(?\d{1,2}[.)])\s")
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_BETWEEN_ITEMS = re.compile("[,;|/\n\u3001\u2022]|\\b(?:and|or)\\b|(?<=\\s)&(?=\\s)|[和与及]", re.IGNORECASE)
_OR = re.compile(r"\bor\b|或", re.IGNORECASE)


def find_yes_no(predicted: str, gold: str) -> Finding | None:
    """For a gold "yes" or "no": the prediction opens with it, and says nothing to the contrary.

    What follows is an explanation: set off by punctuation ("Yes, it did."), or of small words ("no it did not").
    """
    forms = (normalise(predicted), normalise(gold))
    wanted = _POLARITY.get(forms[1])
    if wanted is None:
        return None
    words = forms[0].split()
    opener, rest = next((word for word in words if word not in _OPENERS), ""), words[1:]
    contrary = NEGATIONS if wanted == "yes" else {"yes"}
    if _POLARITY.get(opener) != wanted:
        return Finding(False, "docqa_yes_no", f"the prediction does not open with {wanted!r}", *forms)
    if found := {word for word in rest if word in contrary or _POLARITY.get(word) not in (None, wanted)}:
        return Finding(False, "docqa_yes_no", f"{wanted!r} and {sorted(found)[0]!r} contradict each other", *forms)
    is_explained = bool(_SET_OFF.match(predicted)) or words[0] in _OPENERS
    if not is_explained and any(word not in SMALL_WORDS and word not in NEGATIONS for word in rest):
        return Finding(False, "docqa_yes_no", f"{wanted!r} is part of something else", *forms)
    return Finding(True, "docqa_yes_no", f"the prediction opens with {wanted!r}", *forms)


def find_date(predicted: str, gold: str) -> Finding | None:
    """For two dates: the same day, or month, as precise as the gold is; a date answers for its year too."""
    said = parse_date(predicted)
    if said is None:
        return None
    wanted = parse_date(gold)
    if wanted is None:
        if not re.fullmatch(r"\s*\d{4}\s*", gold):
            return None
        is_year = said.year == int(gold)
        return Finding(
            is_year, "docqa_date", f"{said} is {'' if is_year else 'not '}in {gold}", str(said), gold.strip()
        )
    return _compare_dates(said, wanted)


def _compare_dates(said: Date, wanted: Date) -> Finding:
    verb = "is" if said == wanted else "is not"
    return Finding(said == wanted, "docqa_date", f"{said} {verb} {wanted}", str(said), str(wanted))


def find_number(predicted: str, gold: str) -> Finding | None:
    """For a gold that is a number and nothing else: the same number, exactly, in whatever notation.

    No tolerance here: a year or a count that is 0.1% off is another one. Percent and currency may be left out.
    """
    wanted = parse_quantity(gold)
    said = parse_quantity(predicted) if wanted is not None and not wanted.rest else None
    if wanted is None or said is None:
        return None
    is_same = said.value == wanted.value and can_be_same(said.unit, wanted.unit)
    is_same = is_same and (bool(said.unit) or may_be_left_out(wanted.unit))
    return Finding(is_same, "docqa_number", f"{said} {'is' if is_same else 'is not'} {wanted}", str(said), str(wanted))


def find_list(predicted: str, gold: str) -> Finding | None:
    """Passes for the gold's items, all and no others, in any order; numbers and "respectively" keep their order."""
    said, wanted = _items(predicted), _items(gold)
    if len(wanted) < 2 or len(said) != len(wanted) or bool(_OR.search(predicted)) != bool(_OR.search(gold)):
        return None
    is_ordered = any(map(str.isdigit, gold)) or "respectively" in gold.lower() + predicted.lower()
    if said != wanted and (is_ordered or sorted(said) != sorted(wanted)):
        return None
    return Finding(True, "docqa_list", "the same items", "; ".join(said), "; ".join(wanted))


def find_inverted_name(predicted: str, gold: str) -> Finding | None:
    """Passes for "Obama, Barack" where the gold is "Barack Obama", and the other way round."""
    forms = (normalise(predicted), normalise(gold))
    for inverted, straight in ((predicted, forms[1]), (gold, forms[0])):
        family, comma, given = unify(inverted).partition(",")
        is_name = comma and family.strip() and given.strip() and not re.search(r"[,\d]", given + family)
        if is_name and normalise(f"{given} {family}") == straight:
            return Finding(True, "docqa_name", "the same name, family name first", *forms)
    return None


def _items(text: str) -> list[str]:
    plain = _THOUSANDS_COMMA.sub("", _ENUMERATOR.sub(" ", unify(text)))
    return [item for piece in _BETWEEN_ITEMS.split(plain) if (item := normalise(piece.replace("respectively", "")))]
