"""Text that others wrote is shown so that nothing in it acts on a terminal or hides."""

from __future__ import annotations

import pytest

from hybridflow.observability.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ümläut, 答案是, العربية, a\u3000b", "plain text, ümläut, 答案是, العربية, a\u3000b"),
        ("one\n\ttwo", "one\n\ttwo"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m red", r"\x9b31m red"),
        ("line\rover\x08\x00\x7f", r"line\rover\x08\x00\x7f"),
        ("a\u202etxet\u202c", r"a\u202etxet\u202c"),
        ("\u2066a\u2069 \u200f \u061c", r"\u2066a\u2069 \u200f \u061c"),
        ("learning\u200b_rate\ufeff", r"learning\u200b_rate\ufeff"),
        ("\u2028\u2029\x85\x0b\x0c", r"\u2028\u2029\x85\x0b\x0c"),
        ("\U000e0041tag \ud800", r"\U000e0041tag \ud800"),
    ],
)
def test_shows_what_a_reader_cannot_see_and_leaves_the_rest(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_name_stays_on_one_line() -> None:
    assert visible("a\nb\tc", keep="") == r"a\nb\tc"


def test_every_shown_character_is_printable_or_kept() -> None:
    shown = visible("".join(map(chr, range(0x110000))))

    assert all(character.isprintable() or character in "\n\t\u3000" or character.isspace() for character in shown)
    assert not set("\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\u2028\u2029") & set(shown)
