"""LaTeX and HTML as a reader sees them: what stands in the last `\\boxed{}`, and answers without their mark-up.

Nothing is evaluated: commands that set type or space are dropped, `\\frac{a}{b}` becomes "a/b", or the whole number
that it equals, operators become their signs (`\\leq` is "<="), and a command that is not known stays, as a word that no
rule accounts for. HTML tags that only set type are left out ("<b>C</b>" is C); others stay, as an answer may be written
"<Paris>" or "<B>".
"""

from __future__ import annotations

import re
from typing import NamedTuple

_PAIRED = re.compile(
    r"<(b|i|u|s|em|strong|span|p|div|code|pre|mark|font|center|sub|small|big|tt|kbd|td|li|h[1-6])(?:\s[^<>]{0,120})?>"
    r"([^<>]{0,400})</\1\s{0,4}>",
    re.IGNORECASE,
)
_ALONE = re.compile(
    r"</?(?:br|hr|p|div|ul|ol|li|table|tr|td|answer|final_answer|response|output|s|eos|bos)\s{0,4}/?>", re.IGNORECASE
)
_NESTED_TAGS = 3

_BOXED = re.compile(
    r"\\(?:f?boxed|fbox|framebox)\s{0,3}(?:\[[^\]]{0,20}\]\s{0,3})?(?:(?P<brace>\{)|(?P<bare>-?[\d.,]*\d|\w))"
)
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|bb|cal)|mbox|emph|underline|operatorname|bm|boldsymbol)"
    r"\s{0,3}\{([^{}]*)\}"
)
_TYPE = re.compile(
    r"\\(?:bf|it|rm|em|tt|large|Large|huge|Huge|small|normalsize|displaystyle|textstyle|left|right)(?![A-Za-z])"
)
_FRACTION = re.compile(r"\\[dtc]?frac\s{0,3}(?:\{([^{}]{0,80})\}|(\d))\s{0,3}(?:\{([^{}]{0,80})\}|(\d))")
_FACTORIAL = re.compile(r"(?<=[\d)}])\s?!(?=\s?(?:\$|\\[)\]]|\}))")
"""An exclamation mark inside of mathematics."""
_THIN_THOUSANDS = re.compile(r"(?<=\d)(?:\\,|\\ )(?=\d{3}(?!\d))")
_NOTHING = re.compile(r"\\!|\\(?=\n|\Z)")
_SPACE = re.compile(r"\\(?:[()\[\],;: ]|q?quad(?![A-Za-z]))|~|\\(?:begin|end)\{[a-z*]{1,20}\}")
_SIGNS = {
    "<=": "leq le leqslant", ">=": "geq ge geqslant", "<": "lt", ">": "gt", "\u2260": "neq ne", "±": "pm",
    "\u2213": "mp",
    "≈": "approx simeq sim", "×": "times", "\u00b7": "cdot", "/": "div", " sqrt ": "sqrt", "→": "to rightarrow",
    "⇒": "Rightarrow implies", "...": "ldots dots", "°": "degree", "£": "pounds", "€": "euro", "¥": "yen",
}  # fmt: skip
_SIGN_OF = {name: sign for sign, names in _SIGNS.items() for name in names.split()}
_COMMAND = re.compile(rf"\\({'|'.join(sorted(_SIGN_OF, key=len, reverse=True))})(?![A-Za-z])")
_DEGREE = re.compile(r"\^\{?\\circ\}?")
_ESCAPED = re.compile(r"\\([%$&#_])")
_DISPLAY = re.compile(r"\$\$([^$]{0,2000})\$\$")
_INLINE = re.compile(r"(?<![\w\\$])\$(?=[^\s$])((?:\\\$|[^$\n]){0,300})(?<=[^\s\\])\$(?![\d$])")
"""Mathematics between two dollar signs, and not an amount before another one ("$5 to $6")."""
_NESTED = 4


class Boxed(NamedTuple):
    """A `\\boxed{...}`."""

    start: int
    content: str
    rest: str
    """Text behind it: a scale or a unit is often written behind the box."""


def find_last_boxed(text: str) -> Boxed | None:
    """The last box of `text`, braces inside it paired; one that is never closed was cut off and holds nothing."""
    last = None
    for found in _BOXED.finditer(text):
        last = found
    if last is None:
        return None
    if last["bare"]:
        return Boxed(last.start(), last["bare"], text[last.end() :])
    depth = 1
    for at in range(last.end(), len(text)):
        if text[at] in "{}" and text[at - 1] != "\\":
            depth += 1 if text[at] == "{" else -1
            if depth == 0:
                return Boxed(last.start(), text[last.end() : at], text[at + 1 :])
    return Boxed(last.start(), "", "")


def drop_latex(text: str) -> str:
    """`text` without LaTeX mark-up. Example: drop_latex(r"$\\frac{1}{2}\\text{ years}$") == " 1/2 years" """
    text = write_factorials(text)
    if "$" in text:
        text = _INLINE.sub(r"\1", _DISPLAY.sub(r"\1", text))
    if "\\" not in text and "{" not in text:
        return text
    text = _THIN_THOUSANDS.sub("\u2009", text).replace("{,}", ",")
    for _ in range(_NESTED):
        text = _FRACTION.sub(_write_fraction, text)
        text = _WRAPPER.sub(r"\1", text)
    text = _COMMAND.sub(lambda found: _SIGN_OF[found[1]], _DEGREE.sub("°", _TYPE.sub("", text)))
    return _SPACE.sub(" ", _NOTHING.sub("", _ESCAPED.sub(r"\1", text)))


def write_factorials(text: str) -> str:
    """`text` with the factorials of its mathematics in words: in a sentence, "42!" is 42 with an exclamation mark."""
    return _FACTORIAL.sub(" factorial ", text) if "!" in text else text


def _write_fraction(found: re.Match[str]) -> str:
    """As "a/b", or as the whole number that it equals: unlike "10/2", a drawn fraction is no sum left open."""
    above, below = ((found[at] or found[at + 1] or "").strip() for at in (1, 3))
    is_mixed = found.string[max(0, found.start() - 4) : found.start()].rstrip()[-1:].isdigit()
    if above.isdecimal() and below.isdecimal() and not is_mixed and int(below) and int(above) % int(below) == 0:
        return f" {int(above) // int(below)} "
    return f" {above}/{below}"


def drop_markup(text: str) -> str:
    """`text` without the tags, their content kept. Example: drop_markup("<strong>C</strong>") == "C" """
    if "<" not in text:
        return text
    for _ in range(_NESTED_TAGS):
        text = _PAIRED.sub(r"\2", text)
    return _ALONE.sub(" ", text)
