"""Reads one number with its unit, or a range of two, out of an answer, exactly and without evaluating anything.

Source: the forms that DocMath-Eval accepts (recipe section 4), less its `eval`, its powers of ten and its blindness to
sign. Read are

- thousands separators: ",", a space, an apostrophe, and the Indian 12,34,567;
- a decimal comma where it can be nothing else: "1.234,56", "20,00 €";
- a sign before or behind the currency, "minus", and the brackets of book-keeping: "(1,234)" is -1234;
- fractions, "1/2", "2 1/2", "½", except where the denominator divides the numerator: "10/2" is a sum not worked out;
- "1.5e3", "1.5 x 10^3", "10³"; scale words, which multiply: "60.5 million", "$4.2M", "5 (in thousands)", "3亿";
- numbers in English words and in Chinese characters: "two and a half million", "三千二百四十万";
- the same number again in brackets: "thirty (30) days", "12 percent (12%)".

What stands before and behind it is for `quantities` to account for. Ranges are "5-10%", "5% to 10%", "between $5 and
$10 million"; a range is never one of its ends.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal, InvalidOperation
from typing import NamedTuple

from hybridflow.rewards.numbers import number_forms as forms
from hybridflow.rewards.numbers.chinese_numbers import write_digits
from hybridflow.rewards.numbers.units import CURRENCY, PERCENT, Unit, factor_between, meaning_of, read_unit
from hybridflow.rewards.text.asides import drop_asides
from hybridflow.rewards.text.characters import remember, unify
from hybridflow.rewards.text.lexicon import SCALE_LETTERS, SCALES
from hybridflow.rewards.text.markup import drop_latex
from hybridflow.rewards.text.number_words import read_words

_LEAD = re.compile(
    r"(?:(?:it|is|was|ranges|ranged|ranging|a|the|range|of|approximately|about|in"
    r"|within) ){0,6}(?P<between>between )?(?:from )?",
    re.IGNORECASE,
)
_JOINT = re.compile(r" ?(?P<word>-|to|through|until|and|~|至|到) ?(?=\S)", re.IGNORECASE)

_CONTEXT = Context(prec=60)
_LARGEST_EXPONENT = 300
MOST_CHARS = 600
"""No number with its unit and its explanation is longer."""
_PARTS = {"half": 2, "quarter": 4, "quarters": 4, "third": 3, "fourth": 4, "fifth": 5, "tenth": 10}
_FISCAL = re.compile(r"\bFY(?=\d)")
_SPACES = str.maketrans("", "", " \u2009")
_COMMAS = str.maketrans("", "", ",\u2009")


class Quantity(NamedTuple):
    """A number as an answer states it."""

    value: Decimal
    unit: Unit

    def __str__(self) -> str:
        return " ".join([f"{float(self.value):.12g}", str(self.unit)]).strip()


class Read(NamedTuple):
    """A quantity, and what follows it."""

    quantity: Quantity
    rest: str


@remember
def to_plain(answer: str) -> str:
    """`answer` in the one form that is read here: without LaTeX, with digits, without spaces inside of numbers."""
    text = write_digits(drop_latex(unify(answer)))
    text = forms.SPACED_DECIMAL.sub(lambda found: f"{found[1].translate(_SPACES)}.{found[2]}", text)
    text = forms.SPACED.sub(lambda found: found.group().replace(" ", "").replace("'", ""), text)
    text = forms.SCALE_ASIDE.sub(lambda found: f" {found[1] or found[2]} ", text)
    text = _FISCAL.sub("FY ", text)
    text = re.sub(r"[ \t\n]+", " ", text).replace("**", "").strip()
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def read_quantity(text: str) -> Read | None:
    """The number that `text` (as `to_plain` gives it) starts with; None where it starts with none."""
    return _Reader(text).read()


def parse_quantity(answer: str) -> Quantity | None:
    """The number with its unit that all of `answer` is; None where it is more, or none.

    Example: parse_quantity("$(1.2) billion").value == -1200000000
    """
    if len(answer) > MOST_CHARS:
        return None
    read = read_quantity(to_plain(answer))
    return read.quantity if read and not read.rest.strip(" .,;:!*\"'") else None


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
        self._unit = Unit()

    def read(self) -> Read | None:
        while self._take(forms.ABOUT):
            pass
        if self._take(forms.PERCENT_BEFORE):
            self._unit = Unit(meaning_of("%")[0])
        if not self._take_lead() or (value := self._take_value()) is None:
            return None
        self._close()
        try:
            value = value.scaleb(self._take_scale(), _CONTEXT)
        except InvalidOperation:
            return None
        self._close()
        self._take_repeated(value)
        self._unit, self._at = read_unit(self._text, self._at, self._unit)
        self._close()
        self._take_repeated(value)
        if self._num_open != self._num_closed or (value and abs(value.adjusted()) > _LARGEST_EXPONENT):
            return None
        is_negative = self._sign == "-" or (self._num_open == 1 and self._sign is None)
        return Read(Quantity(-value if is_negative else value, self._unit), self._text[self._at :])

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
                meanings = meaning_of(found.group())[0]
                self._unit = Unit(self._unit.meanings & meanings or meanings)
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
        is_money = bool(self._unit.meanings)
        comma = self._take(forms.DECIMAL_COMMA) or (is_money and self._take(forms.DECIMAL_COMMA_OF_MONEY)) or None
        if comma:
            return Decimal(comma.group().replace(".", "").replace(",", "."))
        if found := self._take(forms.DIGITS):
            value = Decimal(found.group().translate(_COMMAS))
            if power := self._take(forms.POWER):
                value = value.scaleb(int(power["e"] or power["ten"]), _CONTEXT)
            elif part := self._take(forms.AND_A_PART):
                value += _CONTEXT.divide(Decimal(3 if "three" in part.group() else 1), Decimal(_PARTS[part[1].lower()]))
            return value
        return self._take_words()

    def _take_words(self) -> Decimal | None:
        if self._take(forms.ONE):
            return Decimal(1)
        if part := self._take(forms.A_PART):
            return _CONTEXT.divide(Decimal(1), Decimal(_PARTS[part[1].lower()]))
        if self._take(forms.NIL):
            return Decimal(0)
        if spoken := read_words(self._text, self._at):
            self._at = spoken.end
            return spoken.value
        return None

    def _take_repeated(self, value: Decimal) -> None:
        """The same number once more in brackets; another one there is left, and makes the answer unclear."""
        found = forms.ASIDE.match(self._text, self._at)
        again = parse_quantity(found[1]) if found else None
        if found is None or again is None:
            return
        are_known = self._unit.is_known and again.unit.is_known
        factor = factor_between(again.unit, self._unit) if are_known else Decimal(1)
        is_same = factor is not None and abs(again.value) * factor == value
        if is_same or self._is_percentage(value, again):
            self._at = found.end()
            self._unit = self._unit if self._unit.is_known or not is_same else again.unit

    def _is_percentage(self, value: Decimal, again: Quantity) -> bool:
        """Whether one is a fraction and the other its percentage: "0.125 (12.5%)"."""
        if self._unit.meanings == PERCENT and not again.unit.is_known:
            return again.value * 100 == value
        return not self._unit.is_known and again.unit.meanings == PERCENT and again.value == value * 100

    def _take_scale(self) -> int:
        if self._unit.meanings and (found := self._take(forms.SCALE_LETTER)):
            return SCALE_LETTERS[found[1].lower()]
        shift = 0
        while found := self._take(forms.SCALE_WORD):
            word = found[1].lower()
            shift += SCALES.get(word) or SCALES[word.removesuffix("s")]
        return shift

    def _close(self) -> None:
        if self._num_closed < self._num_open and self._take(forms.CLOSE):
            self._num_closed += 1


class Range(NamedTuple):
    """Both ends, from the one that is told first."""

    first: Quantity
    last: Quantity

    def __str__(self) -> str:
        return f"{self.first} to {self.last}"


@remember
def parse_range(answer: str) -> Range | None:
    """The range that all of `answer` is, None where it is none; a unit or scale told once holds for both ends."""
    if len(answer) > MOST_CHARS:
        return None
    text = drop_asides(to_plain(answer))
    lead = _LEAD.match(text)
    text = text[lead.end() :] if lead else text
    first = read_quantity(text)
    joint = _JOINT.match(first.rest) if first else None
    if first is None or joint is None or (joint["word"].lower() == "and") != bool(lead and lead["between"]):
        return None
    behind = first.rest[joint.end() :]
    last = read_quantity(behind)
    if last is None or last.rest.strip(" .,;:!*\"'"):
        return None
    told_first, told_last = text[: len(text) - len(first.rest)], behind
    value, unit = first.quantity
    if (scale := forms.SCALE_WORD.search(told_last)) and not forms.SCALE_WORD.search(told_first):
        value = value.scaleb(SCALES.get(scale[1].lower()) or SCALES[scale[1].lower().removesuffix("s")])
    low_unit = unit if unit.is_known else last.quantity.unit
    high_unit = last.quantity.unit if last.quantity.unit.is_known else unit
    return Range(Quantity(value, low_unit), Quantity(last.quantity.value, high_unit))


def are_same(said: Range, gold: Range) -> bool:
    """Whether both ends are; a unit may be left out."""
    return all(_is_same(one, other) for one, other in zip(said, gold, strict=True))


def _is_same(said: Quantity, gold: Quantity) -> bool:
    factor = factor_between(said.unit, gold.unit) if said.unit.is_known and gold.unit.is_known else 1
    return factor is not None and said.value * factor == gold.value
