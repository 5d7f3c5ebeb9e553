"""Sums that answers show, worked out without evaluating code."""

from __future__ import annotations

from decimal import Decimal

import pytest

from hybridflow.rewards.numbers.arithmetic import compute


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("412 / 3,296", "0.125"),
        ("412 divided by 3,296", "0.125"),
        ("256 + 37", "293"),
        ("2 + 3 x 4", "14"),
        ("(2 + 3) × 4", "20"),
        ("20 - 5 - 3", "12"),
        ("$5 + $6", "11"),
        ("10% x 50", "5"),
        ("-5 + 3", "-2"),
    ],
)
def test_the_value_of_a_sum(expression: str, value: str) -> None:
    assert compute(expression) == Decimal(value)


@pytest.mark.parametrize(
    "text", ["", "5", "-5", "1/0", "5 +", "(((", "(1 + 2", "a + b", "__import__('os')", "9**9", "1+" * 60]
)
def test_what_is_no_sum_has_none(text: str) -> None:
    assert compute(text) is None
