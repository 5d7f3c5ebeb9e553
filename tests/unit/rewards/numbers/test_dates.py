"""Dates that are read, and texts that are refused."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridflow.rewards.numbers.dates import Date, parse_date


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("March 3, 2020", Date(2020, 3, 3)),
        ("on Tues, 3rd of March, 2020", Date(2020, 3, 3)),
        ("Sept. 30 2019", Date(2019, 9, 30)),
        ("2020/3/3", Date(2020, 3, 3)),
        ("13.03.2020", Date(2020, 3, 13)),
        ("3-Mar-2020", Date(2020, 3, 3)),
        ("May 2020", Date(2020, 5, None)),
        ("2020-05", Date(2020, 5, None)),
        ("May 20", Date(None, 5, 20)),
        ("2020年3月3日", Date(2020, 3, 3)),
        ("２０２０年３月", Date(2020, 3, None)),
        ("February 29, 2020", Date(2020, 2, 29)),
    ],
)
def test_forms_that_are_read(text: str, date: Date) -> None:
    assert parse_date(text) == date


@pytest.mark.parametrize(
    "text",
    [
        *("", "2020", "May", "03/04/2020", "2020-13-01", "February 29, 2019", "March 3, 2020 or later", "2020.03"),
        "March 3" + " " * 80,
    ],
)
def test_forms_that_are_refused(text: str) -> None:
    assert parse_date(text) is None


@settings(deadline=None, derandomize=True)
@given(st.dates(min_value=datetime.date(1900, 1, 1), max_value=datetime.date(2099, 12, 31)))
def test_a_printed_date_is_read_back(day: datetime.date) -> None:
    expected = Date(day.year, day.month, day.day)
    for form in ("%Y-%m-%d", "%B %d, %Y", "%d %b %Y", "%b. %d, %Y", "%A, %B %d, %Y"):
        assert parse_date(day.strftime(form)) == expected
