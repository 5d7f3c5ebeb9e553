"""Ranges of numbers: "5-10%", "5% to 10%", "between $5 and $10 million". A range is never one of its ends."""

from __future__ import annotations

import re
from typing import NamedTuple

from hybridflow.rewards.numbers import number_forms as forms
from hybridflow.rewards.numbers.read_number import MOST_CHARS, Quantity, read_quantity, to_plain
from hybridflow.rewards.numbers.units import factor_between
from hybridflow.rewards.text.asides import drop_asides
from hybridflow.rewards.text.lexicon import SCALES
from hybridflow.rewards.text.remember import remember

_LEAD = re.compile(
    r"(?:(?:it|is|was|ranges|ranged|ranging|a|the|range|of|approximately|about|in"
    r"|within) ){0,6}(?P<between>between )?(?:from )?",
    re.IGNORECASE,
)
_JOINT = re.compile(r" ?(?P<word>-|to|through|until|and|~|至|到) ?(?=\S)", re.IGNORECASE)


class Range(NamedTuple):
    """Both ends, from the one that is told first."""

    first: Quantity
    last: Quantity

    def __str__(self) -> str:
        return f"{self.first} to {self.last}"


@remember
def parse_range(answer: str) -> Range | None:
    """The range that all of `answer` is, None where it is none; a unit or scale told once holds for both ends."""
    if len(answer) > MOST_CHARS:
        return None
    text = drop_asides(to_plain(answer))
    lead = _LEAD.match(text)
    text = text[lead.end() :] if lead else text
    first = read_quantity(text)
    joint = _JOINT.match(first.rest) if first else None
    if first is None or joint is None or (joint["word"].lower() == "and") != bool(lead and lead["between"]):
        return None
    behind = first.rest[joint.end() :]
    last = read_quantity(behind)
    if last is None or last.rest.strip(" .,;:!*\"'"):
        return None
    told_first, told_last = text[: len(text) - len(first.rest)], behind
    value, unit = first.quantity
    if (scale := forms.SCALE_WORD.search(told_last)) and not forms.SCALE_WORD.search(told_first):
        value = value.scaleb(SCALES.get(scale[1].lower()) or SCALES[scale[1].lower().removesuffix("s")])
    low_unit = unit if unit.is_known else last.quantity.unit
    high_unit = last.quantity.unit if last.quantity.unit.is_known else unit
    return Range(Quantity(value, low_unit), Quantity(last.quantity.value, high_unit))


def are_same(said: Range, gold: Range) -> bool:
    """Whether both ends are; a unit may be left out."""
    return all(_is_same(one, other) for one, other in zip(said, gold, strict=True))


def _is_same(said: Quantity, gold: Quantity) -> bool:
    factor = factor_between(said.unit, gold.unit) if said.unit.is_known and gold.unit.is_known else 1
    return factor is not None and said.value * factor == gold.value
