"""TOML within bounds: the library's own answer, or a refusal that costs nothing."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path

import pytest

from hybridflow.reading import Unreadable, parse_toml

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("path", [*(ROOT / "configs").rglob("*.toml"), ROOT / "pyproject.toml"], ids=lambda p: p.name)
def test_real_files_are_read_as_by_the_library(path: Path) -> None:
    assert parse_toml(path.read_text()) == tomllib.loads(path.read_text())


@pytest.mark.parametrize(
    "text",
    [
        "a = '" + "a." * 500 + "'",
        'a = "' + "[" * 500 + '"  # ' + "a." * 500,
        'a = """{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{\\""""\nb = 1',
        "# it's " + "[" * 100 + '\na = "#"\nb = [[1], {c = 2}]',
        "[[a]]\nb = 1\n" * 500,
        "a.b.c.d.e = 9223372036854775807",
        "a = -9223372036854775808",
    ],
)
def test_what_only_looks_deep_is_read(text: str) -> None:
    assert parse_toml(text) == tomllib.loads(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (".".join(["a"] * 20_000) + " = 1", "a key of more than 32 parts, a.a.a"),
        (".".join(['"a b"'] * 20_000) + " = 1", "a key of more than 32 parts"),
        (" . ".join(["a"] * 20_000) + " = 1", "a key of more than 32 parts"),
        ("[" + ".".join(["a"] * 20_000) + "]", "a key of more than 32 parts"),
        ("[[" + ".".join(["a"] * 20_000) + "]]", "a key of more than 32 parts"),
        ("a = {" + ".".join(["a"] * 20_000) + " = 1}", "a key of more than 32 parts"),
        ("\n\na = " + "[" * 100_000, "line 3: lists and tables more than 32 deep"),
        ("a = " + "{a = " * 50_000, "lists and tables more than 32 deep"),
        ("a = " + "9" * 5_000, "digits"),
        ("a = 0x" + "f" * 5_000, "64 bits"),
        ("[a]\nb = [1, 18446744073709551616]", "a.b.1 = 18446744073709551616: a whole number has at most 64 bits"),
        ("a" * 2**20 + "a", "more than 1048576 bytes"),
    ],
)
def test_what_is_refused_costs_nothing(text: str, why: str) -> None:
    began = time.process_time()
    with pytest.raises(Unreadable, match=why):
        parse_toml(text)
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize("text", ["a" * 2**20, '"""\\' * 250_000, "a." * 500_000, "'" * 1_000_000, "[" * 30 + "a"])
def test_what_is_no_toml_costs_little(text: str) -> None:
    began = time.process_time()
    with pytest.raises((tomllib.TOMLDecodeError, Unreadable)):
        parse_toml(text)
    assert time.process_time() - began < 5.0
