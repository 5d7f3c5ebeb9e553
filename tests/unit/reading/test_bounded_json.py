"""JSON within bounds: what is read as it is, and what is refused, each in no time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridflow.reading import Unreadable, parse_json, read_json
from hybridflow.reading.bounded_json import MAX_DEPTH, MAX_DIGITS

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
)


@given(VALUES)
def test_what_json_writes_is_read(value: object) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "more than 64 deep"),
        ("[" * 200_000, "more than 64 deep"),
        ('{"a":' * 300 + "1" + "}" * 300, "more than 64 deep"),
        ("9" * (MAX_DIGITS + 1), "a number of 1001 digits"),
        ("9" * 1_000_000, "a number of 1000000 digits"),
        ("1." + "9" * 5000, "a number of 5002 digits"),
        (r'"\ud83d"', "half of a surrogate pair"),
        (r'{"\uDE00": 1}', "half of a surrogate pair"),
        (b"\xff\xfe", "not UTF-8"),
        ('{"a": 1', "broken JSON at column 8"),
        ('{"a": 1,\nb}', "broken JSON at line 2"),
        ("", "broken JSON"),
    ],
)
def test_what_is_refused(text: str | bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        parse_json(text)


def test_what_only_looks_deep_or_halved_is_read() -> None:
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert parse_json(json.dumps(["[{" * 1000])) == ["[{" * 1000]
    assert parse_json(json.dumps([[1]] * 1000)) == [[1]] * 1000
    assert parse_json(r'["\ud83d\ude42", "\\ud83d"]') == ["\U0001f642", r"\ud83d"]
    assert parse_json("9" * MAX_DIGITS) == 10**MAX_DIGITS - 1
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]


def test_file_above_the_bound(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('"aaaaaaaa"')
    assert read_json(tmp_path / "a.json", max_bytes=10) == "aaaaaaaa"
    with pytest.raises(Unreadable, match="more than 9 bytes"):
        read_json(tmp_path / "a.json", max_bytes=9)
