"""Ranges: both ends, with a unit or scale that is told once."""

from __future__ import annotations

import pytest

from hybridflow.rewards.numbers.read_number import are_same, parse_range


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("5-10%", "5% to 10%", True),
        ("between 5% and 10%", "from 5 to 10 percent", True),
        ("$5-10 million", "$5 million to $10 million", True),
        ("3 to 5 years", "36 to 60 months", True),
        ("5-10%", "5-11%", False),
        ("10-5%", "5-10%", False),
        ("$5-10", "5-10%", False),
    ],
)
def test_two_ranges_are_the_same_where_their_ends_are(one: str, other: str, same: bool) -> None:
    first, second = parse_range(one), parse_range(other)
    assert first is not None and second is not None
    assert are_same(first, second) is same


@pytest.mark.parametrize("text", ["", "5", "5 and 10", "5 or 10", "5%, 10%", "between 5", "5-10-15", "5-"])
def test_what_is_no_range_is_none(text: str) -> None:
    assert parse_range(text) is None
