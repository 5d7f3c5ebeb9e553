"""TOML of any origin. The library's time grows with the square of a key's parts; its depth is Python's stack."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from hybridflow.reading.bounded_json import MAX_DIGITS, Unreadable

MAX_BYTES = 2**20
MAX_DEPTH = 32
"""Parts of a dotted key; lists and tables within one another in a value."""
_OPENING = re.compile(r'"""|\'\'\'|"|\'|#')
_CLOSING = {
    '"""': re.compile(r'\\.|"""', re.DOTALL),
    "'''": re.compile(r"'''"),
    '"': re.compile(r'\\.|"|\n', re.DOTALL),
    "'": re.compile(r"'|\n"),
    "#": re.compile(r"\n"),
}
_LONG_KEY = re.compile(rf"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){{{MAX_DEPTH}}}")
_BRACKET = re.compile(r"[\[\]{}]")


def parse_toml(text: str) -> dict[str, Any]:
    """The tables. Raises tomllib.TOMLDecodeError for what is no TOML, Unreadable for what is beyond a bound."""
    if len(text) > MAX_BYTES:
        raise Unreadable(f"more than {MAX_BYTES} bytes. Remedy: check that it is the file that you mean")
    bare = _without_texts(text)
    if found := _LONG_KEY.search(bare):
        check_parts(found[0].count(".") + 1, found[0])
    _check_brackets(bare)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # the first is Python's int(), above 4,300 digits
        raise Unreadable(f"a number of more than {MAX_DIGITS} digits. Remedy: give a smaller one") from error
    _check_numbers(tables, "")
    return tables


def check_parts(num_parts: int, key: str) -> None:
    """Raises Unreadable for a key of too many parts."""
    if num_parts > MAX_DEPTH:
        raise Unreadable(
            f"a key of more than {MAX_DEPTH} parts, {key[:30]}... Remedy: write section.key, as "
            "`hybridflow config --keys` lists them"
        )


def _without_texts(text: str) -> str:
    """The same with an "x" for each text and without comments; line ends stay. Linear."""
    kept: list[str] = []
    place = 0
    while opening := _OPENING.search(text, place):
        kept += [text[place : opening.start()], "" if opening[0] == "#" else "x"]
        place = opening.end()
        closing = _CLOSING[opening[0]].search(text, place)
        while closing and closing[0].startswith("\\"):
            closing = _CLOSING[opening[0]].search(text, closing.end())
        if closing is None:
            return "".join(kept)  # a comment, or a text that does not end, which the parser says
        kept.append("\n" * text.count("\n", place, closing.end()))
        place = closing.end()
    return "".join([*kept, text[place:]])


def _check_brackets(bare: str) -> None:
    depth = 0
    for bracket in _BRACKET.finditer(bare):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > MAX_DEPTH:
            line = bare.count("\n", 0, bracket.start()) + 1
            raise Unreadable(
                f"line {line}: lists and tables more than {MAX_DEPTH} deep within one another. Remedy: make it flatter"
            )


def _check_numbers(value: Any, key: str) -> None:
    """TOML's whole numbers have 64 bits; the library reads any."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_numbers(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_numbers(inner, f"{key}.{index}")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        shown = str(value) if value.bit_length() < 100 else f"a number of {value.bit_length()} bits"
        raise Unreadable(f"{key} = {shown}: a whole number has at most 64 bits. Remedy: give a smaller one")
