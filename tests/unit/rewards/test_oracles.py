"""The readers of numbers and dates against libraries that read them too: text2num, math-verify, dateparser.

text2num agrees on all of it. Where the others differ, a table says who is right and why. Not covered: what the
libraries do not read at all.
"""

from __future__ import annotations

import datetime
import warnings
from decimal import Decimal

import pytest
import sympy
from math_verify import parse, verify
from text_to_num import text2num

from hybridflow.rewards.numbers.dates import parse_date
from hybridflow.rewards.numbers.read_number import parse_quantity

ONES = ["one", "two", "three", "five", "eleven", "nineteen", "twenty", "twenty-one", "ninety-nine"]
BELOW_THOUSAND = [
    *ONES,
    "one hundred",
    "two hundred and five",
    "nine hundred ninety-nine",
    "one hundred and twenty-five",
]
IN_WORDS = [
    *BELOW_THOUSAND,
    *(f"{number} {scale}" for number in BELOW_THOUSAND for scale in ("thousand", "million", "billion")),
    *(
        f"{number} thousand {rest}"
        for number in ONES
        for rest in ("one hundred", "two hundred and five", "ninety-nine")
    ),
    *(
        "one million two hundred thousand",
        "three billion five million",
        "two thousand and nineteen",
        "twenty-five hundred",
    ),
    *("five six", "twenty thirty", "zero"),
]
IN_LATEX = [
    *(
        "12",
        "-12",
        "1{,}234",
        "1,234,567.5",
        "\\frac{1}{2}",
        "-\\frac{3}{4}",
        "\\frac38",
        "\\dfrac{7}{8}",
        "0.125",
        ".5",
    ),
    *(
        "\\text{12}",
        "12\\%",
        "1.5 \\times 10^{3}",
        "10^{6}",
        "\\frac{5}{2}",
        "3\\frac{1}{2}",
        "\\mathbf{42}",
        "\\$42",
        "007",
    ),
    *(
        "\\left(12\\right)",
        "12\\text{ km}",
        "2.50",
        "1e3",
        "\\sqrt{4}",
        "\\pi",
        "\\frac{10}{2}",
        "(1{,}234)",
        "12\\,000",
    ),
]
LATEX_READ_OTHERWISE = {
    "\\sqrt{4}": "math-verify works it out; a sum that is not worked out is no number here",
    "\\pi": "the same: a constant is no number in a report",
    "(1{,}234)": "the brackets of book-keeping: -1,234 here, 1,234 for math-verify",
    "\\left(12\\right)": "the same",
    "1e3": "1,000 as programs write it; math-verify takes e for a letter",
    "12\\,000": "a thin space sets off thousands; math-verify multiplies 12 by 000",
}

DAYS = [datetime.date(1963, 1, 9), datetime.date(2020, 2, 29), datetime.date(2019, 12, 31), datetime.date(2001, 11, 10)]
FORMS = [
    *(
        "%Y-%m-%d",
        "%B %d, %Y",
        "%d %B %Y",
        "%b %d, %Y",
        "%d %b %Y",
        "%b. %d, %Y",
        "%A, %B %d, %Y",
        "%Y/%m/%d",
        "%d-%b-%Y",
    ),
    *(
        "%B %d %Y",
        "%Y-%m-%dT%H:%M:%SZ",
        "%Y-%m-%dT%H:%M:%S+00:00",
        "%Y-%m-%d %H:%M",
        "%Y年%m月%d日",
        "%d. %B %Y",
        "%Y.%m.%d",
    ),
]
NO_DATES = {
    "03/04/2020": "day and month either way: dateparser takes the month first",
    "yesterday": "depends on the day of reading: no date of a report",
    "March": "a month without a year: dateparser adds today's",
    "12": "a number: dateparser takes it for a day of this month",
    "2019": "a year, compared as a number",
    "March 3, 2020 or later": "another date than that day; neither reads one",
}


@pytest.mark.parametrize("words", IN_WORDS)
def test_numbers_in_words_as_text2num_reads_them(words: str) -> None:
    ours = parse_quantity(words)
    try:
        theirs = Decimal(text2num(words, "en"))
    except ValueError:
        theirs = None
    assert (ours.value if ours else None) == theirs


@pytest.mark.parametrize("latex", IN_LATEX)
def test_numbers_in_latex_as_math_verify_reads_them(latex: str) -> None:
    ours = parse_quantity(latex)
    theirs = parse(f"${latex}$", parsing_timeout=None)
    is_same = ours is not None and verify(
        [sympy.Rational(str(ours.value)) / (100 if "%" in latex else 1)], theirs, timeout_seconds=None, float_rounding=6
    )
    assert is_same != (latex in LATEX_READ_OTHERWISE), (latex, ours, theirs)


@pytest.mark.parametrize("day", DAYS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_dates_as_dateparser_reads_them(day: datetime.date, form: str) -> None:
    text = day.strftime(form)
    ours = parse_date(text)
    assert ours is not None and (ours.year, ours.month, ours.day) == _read_date(text), text


@pytest.mark.parametrize("text", NO_DATES)
def test_what_dateparser_guesses_is_no_date(text: str) -> None:
    assert parse_date(text) is None


def _read_date(text: str) -> tuple[int, int, int] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import dateparser

        found = dateparser.parse(text, languages=["en", "zh"], settings={"DATE_ORDER": "YMD", "TIMEZONE": "UTC"})
    return None if found is None else (found.year, found.month, found.day)
