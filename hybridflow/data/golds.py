"""Gold answers as people write them: a text, a number, or several of which any is right."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from hybridflow.data.messages import refuse
from hybridflow.reading import Unreadable, parse_json

_COLUMN = "reward_model.ground_truth"
_REMEDY = "give the gold answer as a non-empty string; without one the row cannot be judged"
_LIKE_LIST = re.compile(r"""\s*(\[\s*(["']).*\2\s*\]|\{\s*["']target["']\s*:.*\})\s*\Z""", re.DOTALL)


def read_golds(value: object, where: str) -> list[str]:
    """The golds as texts, at least one, none twice. Raises DataError naming place, value and remedy.

    A list means that any of them is right; so does verl's {"target": [...]}, and either as JSON in a text. A list of
    numbers in a text is an answer: [0, 1] may be an interval. A number is written out: 6.45, 1200.
    """
    if isinstance(value, str) and _LIKE_LIST.match(value):
        value = _read_listed(value, where)
    if isinstance(value, Mapping):
        if set(value) != {"target"}:
            refuse(where, _COLUMN, dict(value), 'use a string, a number, a list of them, or {"target": [...]}')
        value = value["target"]
    if isinstance(value, list):
        if not value:
            refuse(where, _COLUMN, value, _REMEDY)
        return list(dict.fromkeys(_read_gold(one, where, f"{_COLUMN}[{index}]") for index, one in enumerate(value)))
    return [_read_gold(value, where, _COLUMN)]


def _read_listed(text: str, where: str) -> Any:
    """The list of texts, or verl's object, that a text spells."""
    try:
        return parse_json(text)
    except Unreadable as error:
        refuse(where, _COLUMN, text, f"write the gold answers as JSON ({error}), or as a list and not as its text")


def _read_gold(value: object, where: str, column: str) -> str:
    if isinstance(value, bool):
        refuse(where, column, value, 'write the answer as a string, such as "yes"')
    if isinstance(value, int | Decimal):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            refuse(where, column, value, "give a finite number, or a string")
        return format(Decimal(repr(value)), "f")
    if not isinstance(value, str) or not value.strip():
        refuse(where, column, value, _REMEDY)
    return value
