"""Reads one number with its unit out of an answer, exactly and without evaluating anything.

Source: the forms that DocMath-Eval accepts (recipe section 4), less its `eval`, its powers of ten and its blindness to
sign. Read are

- thousands separators: ",", a space, an apostrophe, and the Indian 12,34,567;
- a sign before or behind the currency, "minus", and the brackets of book-keeping: "(1,234)" is -1234;
- fractions, "1/2", "2 1/2", "½", except where the denominator divides the numerator: "10/2" is a sum not worked out;
- "1.5e3", "1.5 x 10^3", "10³"; scale words, which multiply: "60.5 million", "$4.2M", "5 (in thousands)", "3亿";
- numbers in words, where nothing follows but a unit: "one hundred and twenty", "two and a half million";
- the same number again in brackets: "thirty (30) days", "12 percent (12%)";
- what follows the last "=": "100 - 95 = 5" is 5.

Not read, because they could be two numbers: "1.234,5" and "1.234.567", "12,34", "5 or 6", "2-10"; nor what changes a
number from behind: "5+", "5 dozen", "a $5 million loss". A percent sign is a unit: "40%" is 40 percent, and never 0.4.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal, InvalidOperation
from typing import NamedTuple

from hybridflow.rewards import number_forms as forms
from hybridflow.rewards.characters import CJK, unify
from hybridflow.rewards.latex import drop_latex
from hybridflow.rewards.normalise import split_words
from hybridflow.rewards.number_words import NUMBER_WORDS, read_words
from hybridflow.rewards.units import CURRENCY, NO_UNIT, Unit, can_be_same, meaning_of, name_of
from hybridflow.rewards.wording import (
    ALTERNATIVES,
    NEGATIONS,
    SCALE_LETTERS,
    SCALES,
    SIGN_WORDS,
    SMALL_WORDS,
    is_scale,
    word_set,
)

_CONTEXT = Context(prec=60)
_LARGEST_EXPONENT = 300
_READ_CHARS = 200
"""A number and its unit are at the start of an answer; more than this is not read."""

_UNSURE = (NEGATIONS | ALTERNATIVES | word_set("to times")) - word_set("and but except excluding without ex either")
"""Behind a number: there may be another one, or it may not hold."""
_PART_OF_IT = word_set(
    "dozen dozens squared cubed factorial half halves third thirds fourth fourths fifth fifths tenth tenths hundredth "
    "hundredths thousandth thousandths millionth millionths"
)
"""Directly behind a number: it is another one."""


class Quantity(NamedTuple):
    """A number as an answer states it."""

    value: Decimal
    unit: Unit
    """What it counts; empty where the answer does not say, or in words that are not known."""
    rest: str
    """Words behind it, such as "employees"."""

    def __str__(self) -> str:
        return " ".join([f"{float(self.value):.12g}", name_of(self.unit)]).strip()


def parse_quantity(answer: str) -> Quantity | None:
    """The number that `answer` starts with, or None where it states none, or more than one.

    Words may follow ("12 years"), and the time for which it holds ("5% in 2019"); another number may not.
    Example: parse_quantity("$(1.2) billion").value == -1200000000
    """
    text = drop_latex(unify(answer[:_READ_CHARS])).replace("\\", "")
    text = forms.SPACED.sub(lambda found: found.group().replace(" ", "").replace("'", ""), text)
    text = forms.SCALE_ASIDE.sub(lambda found: f" {found[1] or found[2]} ", text)
    text = re.sub(r"[ \t\n]+", " ", text).strip().removeprefix("[").removesuffix("]")
    quantity = _Reader(text).read()
    if quantity is None and (equals := list(forms.EQUALS.finditer(text))):
        quantity = _Reader(text[equals[-1].end() :].strip()).read()
    return quantity


def are_close(predicted: Decimal, gold: Decimal, relative_tolerance: Decimal) -> bool:
    """|predicted - gold| <= relative_tolerance * |gold|, in decimal arithmetic. Nothing but 0 is close to 0."""
    difference = abs(_CONTEXT.subtract(predicted, gold))
    return difference <= _CONTEXT.multiply(relative_tolerance, abs(gold))


class _Reader:
    """Takes an answer apart from the left: about, sign and currency and bracket, number, scale, unit, rest."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._sign: str | None = None
        self._num_open = self._num_closed = 0
        self._unit = NO_UNIT
        self._in_words = False

    def read(self) -> Quantity | None:
        while self._take(forms.ABOUT):
            pass
        if self._take(forms.PERCENT_BEFORE):
            self._unit = meaning_of("%")
        if not self._take_lead():
            return None
        if (value := self._take_value()) is None:
            return None
        self._close()
        shift = self._take_scale()
        self._close()
        try:
            value = value.scaleb(shift, _CONTEXT)
        except InvalidOperation:
            return None
        self._take_repeated(value)
        if found := self._take(forms.UNIT_BEHIND):
            self._join(meaning_of(found.group().lstrip()))
        self._close()
        self._take_repeated(value)
        rest = self._text[self._at :]
        if self._num_open != self._num_closed or not self._is_clear(rest):
            return None
        if value and abs(value.adjusted()) > _LARGEST_EXPONENT:
            return None
        is_negative = self._sign == "-" or (self._num_open == 1 and self._sign is None)
        return Quantity(-value if is_negative else value, self._unit, rest.strip())

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._at)
        if found:
            self._at = found.end()
        return found

    def _take_lead(self) -> bool:
        """Sign, currency and opening bracket in any order, each at most once."""
        while True:
            if found := self._take(forms.SIGN):
                if self._sign is not None:
                    return False
                self._sign = "+" if found.group() == "+" else "-"
            elif found := self._take(CURRENCY):
                self._join(meaning_of(found.group()))
            elif self._take(forms.OPEN):
                self._num_open += 1
            elif self._text[self._at : self._at + 1] == " ":
                self._at += 1
            else:
                return self._num_open <= 1

    def _take_value(self) -> Decimal | None:
        if found := self._take(forms.FRACTION):
            whole, above, below = int(found[1] or 0), int(found[2]), int(found[3])
            if below == 0 or above % below == 0:
                return None
            return _CONTEXT.divide(Decimal(whole * below + above), Decimal(below))
        if found := self._take(forms.POWER_ALONE):
            return Decimal(1).scaleb(int(found[1]), _CONTEXT)
        if found := self._take(forms.DIGITS):
            value = Decimal(found.group().replace(",", "").replace("\u2009", ""))
            if power := self._take(forms.POWER):
                value = value.scaleb(int(power["e"] or power["ten"]), _CONTEXT)
            return value
        if self._take(forms.ONE):
            return Decimal(1)
        if spoken := read_words(self._text, self._at):
            self._in_words, self._at = True, spoken.end
            return spoken.value
        return None

    def _take_repeated(self, value: Decimal) -> None:
        """The same number once more in brackets; another one there is left, and makes the answer unclear."""
        found = forms.ASIDE.match(self._text, self._at)
        again = parse_quantity(found[1]) if found else None
        if found and again and abs(again.value) == value and can_be_same(again.unit, self._unit) and not again.rest:
            self._at = found.end()
            self._unit = self._unit or again.unit

    def _take_scale(self) -> int:
        if self._unit and (found := self._take(forms.SCALE_LETTER)):
            return SCALE_LETTERS[found[1].lower()]
        shift = 0
        while found := self._take(forms.SCALE_WORD):
            word = found[1].lower()
            shift += SCALES.get(word) or SCALES[word.removesuffix("s")]
        return shift

    def _close(self) -> None:
        if self._num_closed < self._num_open and self._take(forms.CLOSE):
            self._num_closed += 1

    def _join(self, unit: Unit) -> None:
        """Narrows the unit: "$5 USD" is US dollars. Of two that contradict each other the last one stands."""
        self._unit = self._unit & unit or unit

    def _is_clear(self, rest: str) -> bool:
        """Whether what follows the number is words, and not more of it, another one, or a doubt."""
        before = self._text[self._at - 1 : self._at]
        is_glued = before.isascii() and before.isalnum() and rest[:1].isalnum() and not re.match(f"[{CJK}]", rest)
        if is_glued or rest[:1] in ("_", "/", "^", ")") or forms.OR_MORE.match(rest):
            return False
        without_time = forms.TIME.sub(" ", rest)
        words = [word.text for word in split_words(without_time)]
        if words[:1] and (words[0] in SCALE_LETTERS or words[0] in _PART_OF_IT):
            return False
        if SIGN_WORDS.intersection(words) or any(
            is_scale(word) or word in _UNSURE or any(map(str.isdigit, word)) for word in words
        ):
            return False
        if self._in_words:
            is_unit = len(words) <= 2 and not SMALL_WORDS.intersection(words) and "and" not in words
            return is_unit and rest[:1] != "-" and not NUMBER_WORDS.search(rest)
        return all(found.group().lower() == "one" for found in NUMBER_WORDS.finditer(without_time))
