"""Numbers in Chinese characters: which are written in digits, and which name no exact number and stay."""

from __future__ import annotations

import pytest

from hybridflow.rewards.numbers.chinese_numbers import write_digits


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("三千二百四十万", "32400000"),
        ("百分之二十五", "25%"),
        ("一万五千亿", "1500000000000"),
        ("3亿5000万元", "350000000元"),
        ("3億5千萬", "350000000"),
        ("5萬元", "5万元"),
        ("三兆", "3000000000000"),
        ("负三千", "-3000"),
        ("三分之一", "1/3"),
        ("三点五", "3.5"),
        ("两倍", "2倍"),
        ("二〇二〇年三月三日", "2020年3月3日"),
        ("约三千万元", "约30000000元"),
        ("250亿", "250亿"),
        ("no number", "no number"),
    ],
)
def test_numbers_are_written_in_digits(text: str, digits: str) -> None:
    assert write_digits(text) == digits


@pytest.mark.parametrize(
    "text", ["五千多万", "5余万", "十几", "数千", "三四", "五六万", "第三", "星期三", "一万万", "3亿5000"]
)
def test_what_names_no_exact_number_stays(text: str) -> None:
    assert write_digits(text) == text
