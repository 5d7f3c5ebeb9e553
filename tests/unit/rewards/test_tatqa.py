"""Real golds of financial reports in other notations, and real golds made wrong.

Rows: TAT-QA (Zhu et al. 2021), beside the checkout in shared/data. 106 of the 120 golds are a number with at most a
sign, a currency and one of percent, thousand, million, billion. Not covered: predictions that a model wrote.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hybridflow.types import Scored, ScoreRequest
from tests.unit.rewards.default_rules import verify

TATQA = Path(__file__).parents[3].parent / "shared/data/tatqa_docqa.jsonl"
pytestmark = pytest.mark.skipif(not TATQA.exists(), reason="the TAT-QA rows are not beside this checkout")

SCALES = {"thousand": 3, "million": 6, "billion": 9}
SENTENCE = "Therefore, the answer is "
GOLD = re.compile(
    rf"{SENTENCE}(?P<currency>S?[$£])?(?P<sign>[-−])?(?P<digits>[\d,]+(?:\.\d+)?)"
    r"(?: ?(?P<unit>%|percent|thousand|million|billion))?\."
)


class Number(NamedTuple):
    """A numeric gold in its parts; `value` has no sign."""

    currency: str
    is_negative: bool
    value: Decimal
    unit: str


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in TATQA.read_text(encoding="utf-8").splitlines()]


def read_numbers() -> list[tuple[dict[str, Any], Number]]:
    found = [(row, GOLD.fullmatch(row["reward_model"]["ground_truth"])) for row in read_rows()]
    return [
        (
            row,
            Number(
                gold["currency"] or "", bool(gold["sign"]), Decimal(gold["digits"].replace(",", "")), gold["unit"] or ""
            ),
        )
        for row, gold in found
        if gold
    ]


def score(row: dict[str, Any], answer: str) -> float | None:
    verdict = verify(
        ScoreRequest(
            completion_id="c",
            data_source=row["data_source"],
            ability=row["ability"],
            ground_truth=row["reward_model"]["ground_truth"],
            text=f"<think>...</think>\n\nTherefore, the answer is {answer}.",
        )
    )
    return verdict.value if isinstance(verdict, Scored) else None


def write(gold: Number, value: Decimal, unit: str, *, money: bool = False, brackets: bool = False) -> str:
    """The number with commas, and a currency sign where asked for."""
    currency = (gold.currency or "$") if money else gold.currency
    text = f"{currency}{value:,f}{unit if unit == '%' else ' ' + unit if unit else ''}"
    if not gold.is_negative:
        return text
    return f"({text})" if brackets else f"-{text}"


def other_notations(gold: Number) -> list[str]:
    bare = gold._replace(currency="")
    if gold.unit in ("%", "percent"):
        forms = [
            write(bare, gold.value, unit, brackets=b)
            for unit in ("%", "percent", "per cent", "")
            for b in (False, True)
        ]
        return [*forms, write(bare, gold.value + Decimal("0.000"), "%")]
    forms = [write(gold, gold.value, gold.unit, money=m, brackets=b) for m in (False, True) for b in (False, True)]
    if gold.unit:
        whole = gold.value.scaleb(SCALES[gold.unit])
        forms += [write(gold, whole, "", money=m) for m in (False, True)] + [f"{'-' * gold.is_negative}{whole:f}"]
        forms.append(write(gold, whole / 1000, "thousand", money=True))
    return [*forms, write(bare, gold.value, gold.unit), write(gold, gold.value + Decimal("0.00"), gold.unit)]


def made_wrong(gold: Number) -> list[str]:
    flipped = gold._replace(is_negative=not gold.is_negative)
    forms = [write(flipped, gold.value, gold.unit), write(gold, -gold.value, gold.unit)]
    forms += [write(gold, gold.value * tenths / 10, gold.unit) for tenths in (9, 11)]
    forms += [write(gold, gold.value.scaleb(power), gold.unit) for power in (-3, -2, -1, 1, 2, 3)]
    forms += [write(gold, gold.value, scale) for scale in SCALES if scale != gold.unit]
    return [*forms, write(gold, gold.value, "")] if gold.unit in SCALES else forms


def test_every_real_gold_passes_as_its_own_answer() -> None:
    rows = read_rows()
    golds = [row["reward_model"]["ground_truth"].removeprefix(SENTENCE).removesuffix(".") for row in rows]
    assert len(rows) == 120
    assert [gold for row, gold in zip(rows, golds, strict=True) if score(row, gold) != 1.0] == []


def test_a_real_gold_in_another_notation_passes() -> None:
    numbers = read_numbers()
    assert len(numbers) == 106
    failed = [(gold, form) for row, gold in numbers for form in other_notations(gold) if score(row, form) != 1.0]
    assert failed == []


def test_a_real_gold_with_another_sign_or_scale_or_a_tenth_off_fails() -> None:
    passed = [(gold, form) for row, gold in read_numbers() for form in made_wrong(gold) if score(row, form) != 0.0]
    assert passed == []
