"""Numbers that are read, and texts that are refused."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridflow.rewards.numbers.read_number import are_close, parse_quantity
from hybridflow.rewards.text.normalise import normalise


def value_of(text: str) -> Decimal | None:
    quantity = parse_quantity(text)
    return None if quantity is None else quantity.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("S$1.75 billion", "1750000000"),
        ("USD 5", "5"),
        ("(5)%", "-5"),
        ("(60.5 million)", "-60500000"),
        ("\\$5\\%", "5"),
        ("2.98 percent", "2.98"),
        ("3 \u00d7 10^{-2}", "0.03"),
        ("= 7", "7"),
        ("1/2", "0.5"),
    ],
)
def test_forms_that_are_read(text: str, value: str) -> None:
    assert value_of(text) == Decimal(value)


@pytest.mark.parametrize(
    "text", ["", "-", "(", "()", "5x", "3rd", "(5", "5)", "10/2", "5\u00b2", "1234,567", "5k", "Q3"]
)
def test_forms_that_are_refused(text: str) -> None:
    assert parse_quantity(text) is None


@settings(deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**12), max_value=10**12))
def test_a_printed_number_is_read_back(value: Decimal) -> None:
    assert value_of(f"{value:,}") == value_of(f"${value}") == value
    assert are_close(value, value, Decimal(0))


@settings(deadline=None)
@given(st.text())
def test_the_compared_form_has_no_articles_and_single_spaces(text: str) -> None:
    words = normalise(text + " The  an A.").split(" ")
    assert not {"a", "an", "the"} & set(words)
    assert words == [""] or all(words)
