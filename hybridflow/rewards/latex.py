"""LaTeX as a reader sees it: what stands in the last `\\boxed{}`, and answers without their mark-up.

Nothing is evaluated: commands that set type or space are dropped, `\\frac{a}{b}` becomes "a/b", the rest stays.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_BOXED = re.compile(r"\\f?boxed\s{0,3}\{")
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|emph|operatorname)\s?\{([^{}]*)\}"
)
_FRACTION = re.compile(r"\\[dt]?frac\s?\{([^{}]{0,80})\}\s?\{([^{}]{0,80})\}")
_NOTHING = re.compile(r"\\(?:[,;:!]|displaystyle\b|left\b|right\b)")
_SPACE = re.compile(r"\\(?:[()\[\] ]|q?quad\b)|~")
_SYMBOLS = {r"\times": "×", r"\cdot": "\u00b7", r"\approx": "≈", "{,}": ","}
_SYMBOLS |= {rf"\{symbol}": symbol for symbol in "%$&#_"}
_MATH = re.compile(r"\A(\${1,2})([^$]+)\1([.,;:]?)\Z")
_NESTED = 4


class Boxed(NamedTuple):
    """A `\\boxed{...}`."""

    start: int
    content: str
    rest: str
    """What follows it: a scale or a unit is often written behind the box."""


def find_last_boxed(text: str) -> Boxed | None:
    """The last box of `text`, braces inside it paired; one that is never closed was cut off and holds nothing."""
    start = end = -1
    for found in _BOXED.finditer(text):
        start, end = found.span()
    if start < 0:
        return None
    depth = 1
    for at in range(end, len(text)):
        if text[at] in "{}" and text[at - 1] != "\\":
            depth += 1 if text[at] == "{" else -1
            if depth == 0:
                return Boxed(start, text[end:at], text[at + 1 :])
    return Boxed(start, "", "")


def drop_latex(text: str) -> str:
    """`text` without LaTeX mark-up. Example: drop_latex(r"$\\frac{1}{2}\\text{ years}$") == " 1/2 years" """
    if math := _MATH.match(text):
        text = math[2] + math[3]
    if "\\" not in text and "{" not in text:
        return text
    for _ in range(_NESTED):
        text = _WRAPPER.sub(r"\1", text)
        text = _FRACTION.sub(lambda found: f" {found[1].strip()}/{found[2].strip()}", text)
    for command, symbol in _SYMBOLS.items():
        text = text.replace(command, symbol)
    return _SPACE.sub(" ", _NOTHING.sub("", text))
