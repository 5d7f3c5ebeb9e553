"""Compares an answer with a gold that is a number, every word around the number accounted for.

Before the number: words that name what is counted ("the total was"), never one that could change it ("half of", "Note",
"under"). Behind it: its unit; when it holds ("in 2019"); a clause that offers no other number ("so that is what is
owed"); a sum that ends in it ("i.e. 412 divided by 3,296"). The unit, for a gold that

- has none: the same number with any unit, or a noun that is counted;
- has one: none, the same, or an exact multiple. "$5 million" is not "5 million shares".

A fraction from -1 to 1 and its percentage are one value. Percentage points and basis points are no fractions.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import NamedTuple

from hybridflow.rewards.numbers import number_forms as forms
from hybridflow.rewards.numbers.arithmetic import compute
from hybridflow.rewards.numbers.read_number import (
    MOST_CHARS,
    Quantity,
    are_close,
    parse_quantity,
    read_quantity,
    to_plain,
)
from hybridflow.rewards.numbers.units import PERCENT, UNCLEAR, factor_between, is_countable
from hybridflow.rewards.text.asides import drop_asides, is_empty, is_reference, is_source
from hybridflow.rewards.text.characters import remember
from hybridflow.rewards.text.lexicon import (
    ALTERNATIVES,
    COMPARISONS,
    MEASURED,
    NEUTRAL,
    SIGN_WORDS,
    SMALL_WORDS,
    is_scale,
    word_set,
)
from hybridflow.rewards.text.normalise import split_words
from hybridflow.rewards.text.number_words import NUMBER_WORDS

EXACT = Decimal(0)
_NUMBER_BEGINS = re.compile(
    r"(?<![^\s(=:])(?:[-+(]|(?:us|s|a|c|hk|nz|nt)?[$£€¥₹₩]|(?:usd|eur|gbp|rmb|cny|inr|jpy|rs\.?|chf) ?){0,4}\.?\d"
    r"|(?<=[\u3400-\u9fff])\d|(?:negative|minus) \d|\ba (?:hundred|thousand|million|billion|trillion|half|quarter"
    r"|third)\b"
    rf"|\bhalf\b|{NUMBER_WORDS.pattern}",
    re.IGNORECASE,
)
_TIME_FIRST = re.compile(rf"(?:{forms.TIME.pattern}),? ", re.IGNORECASE)
_YEAR = re.compile(r"(?:19|20)\d\d(?![.,]{0,2}\d)")
_REFERENCES = word_set("figure number year fiscal result month part item no group company term period")
"""Directly before a number, they make a reference of it, as in "figure 5"."""
_MOST_WORDS_BEFORE = 14
_CHINESE_LEAD = re.compile(
    r"(?:(?:(?:增加|增长|上升|提高|上涨)了?|共有|共计|合计|总计|总额|金额|大约|大概|约为|约|為|为|是|共|等于|达到|达|有|:|人民币)(?:为|是|到|至)?\s?){1,3}"
)
_CHINESE_TAIL = re.compile(r"^\s?(?:左右|上下)?(?:整|正)?$")
_REASON = re.compile(
    r"[,;:(\s-]{0,6}(?:so|because|since|as|which|that is|this is|that's|i\.?e\.?,?|thus|hence|given|according"
    r"|computed|calculated"
    r"|derived|obtained|rounded|and this|and that|being|namely"
    r"|the (?:figure|amount|number|value|one) (?:that (?:is|was) )?(?:shown|given|reported|stated|listed"
    r"|recorded|disclosed|for|in|of|on))\b[\s,:]{0,4}",
    re.IGNORECASE,
)
_AGAIN = re.compile(
    r"[,;:(\s-]{0,6}(?:or|i\.?e\.?,?|which (?:is|equals)|equal to|equivalent to|equivalently|that is,?|namely)\s"
    r"(?P<again>[^;()]{1,80}\)?)\W{0,3}\Z",
    re.IGNORECASE,
)
_OR = re.compile(r"\W{0,6}or\b", re.IGNORECASE)
_SUM_LEAD = re.compile(r"\A\s?(?:it is|it's|is|the (?:sum|ratio|quotient|difference|product) of)\s", re.IGNORECASE)
_SUM_TOLERANCE = Decimal("0.0015")
_DOUBT = ALTERNATIVES - word_set("and 和 与 both also") | word_set(
    "wrong incorrect false mistaken but however unsure unclear unknown instead rather if unless except excluding"
)
_SYMBOL = re.compile(r"[+*/^=<>±×÷√\u2260≈~%:#&@|\\°²³\u2213→⇒_-]")
_AROUND = " .,;:!?*\"'()[]$`\u2019\u3002\u3001"


class Stated(NamedTuple):
    """The number of an answer, and the words beside it that nothing accounts for."""

    quantity: Quantity | None
    unaccounted: tuple[str, ...] = ()


@remember
def read_gold(gold: str) -> Quantity | None:
    """The number with its unit that a gold is; None where it is a text, whatever numbers are in it."""
    if len(gold) > MOST_CHARS:
        return None
    read = read_quantity(to_plain(gold))
    if read is None or read.rest.strip(_AROUND) or "scale" in read.quantity.unit.meanings:
        return None
    return read.quantity


def read_stated(answer: str, gold: Quantity) -> Stated:
    """The number that `answer` states where `gold` is wanted."""
    if len(answer) > MOST_CHARS:
        return Stated(None, ("a long text",))
    text = drop_asides(to_plain(answer))
    text = _drop_derivation(text, gold)
    text = re.sub(r"(?<=[\d%.\w)])\s?(?:左右|上下)(?=$|[，。,.])", "", text)
    if abs(gold.value) < 1 or gold.unit.meanings == PERCENT:
        text = forms.PARTS_APART.sub(r"\1-", text)
    equals = list(forms.EQUALS.finditer(text))
    if equals and text.count("(", 0, equals[-1].start()) == text.count(")", 0, equals[-1].start()):
        behind = _read_behind_lead(text[equals[-1].end() :].strip(), gold)
        if (
            behind.quantity is not None
            and not behind.unaccounted
            and not (_DOUBT - {"plus"}).intersection(_words(text[: equals[-1].start()]))
        ):
            return behind
    return _read_behind_lead(text, gold)


def _drop_derivation(text: str, gold: Quantity) -> str:
    """`text` without the sum in brackets behind its number that ends in it: "5.4% ((527 - 500) / 500 = 0.054)"."""
    head, found, aside = text.partition(" (")
    expression, equals, result = aside.removesuffix(")").rpartition("=")
    if not found or not equals or not aside.endswith(")"):
        return text
    stated, again = _read_behind_lead(head, gold), parse_quantity(result)
    value = compute(expression)
    if stated.quantity is None or stated.unaccounted or again is None or value is None:
        return text
    is_same = any(are_close(value * scale, stated.quantity.value, _SUM_TOLERANCE) for scale in (1, 100))
    return head if is_same and are_close(value, again.value, _SUM_TOLERANCE) else text


def agree(said: Quantity, gold: Quantity, tolerance: Decimal) -> bool:
    """Whether two quantities are one value within a relative tolerance, units as the module says."""
    if said.unit.is_known and gold.unit.is_known:
        factor = factor_between(said.unit, gold.unit)
        return factor is not None and are_close(said.value * factor, gold.value, tolerance)
    if said.unit.meanings & UNCLEAR:
        return False
    if said.unit.words and not (said.unit.meanings or is_countable(said.unit.words, said.value)):
        return False
    if are_close(said.value, gold.value, tolerance):
        return True
    percents, fraction = (said, gold) if said.unit.meanings == PERCENT else (gold, said)
    is_pair = percents.unit.meanings == PERCENT and not fraction.unit.is_known and abs(fraction.value) <= 1
    if not is_pair or abs(gold.value if fraction is gold else gold.value / 100) > 1:
        return False
    return are_close(said.value / 100 if said is percents else said.value * 100, gold.value, tolerance)


def _read_behind_lead(text: str, gold: Quantity) -> Stated:
    text = _TIME_FIRST.sub("", text, count=1) if _TIME_FIRST.match(text) else text
    lead = _CHINESE_LEAD.match(text)
    text = text[lead.end() :] if lead else text
    read, before = read_quantity(text), ""
    if read is None:
        found = _NUMBER_BEGINS.search(text)
        if found is None:
            return Stated(None, ("no number",))
        start = found.start()
        before, read = text[:start], read_quantity(text[start:])
    if read is None:
        return Stated(None, ("no single number",))
    quantity, rest = read
    words = _unaccounted_before(before, quantity, rest if not before else text[len(before) :])
    words += _unaccounted_behind(rest, quantity)
    counted = quantity.unit.words
    if counted and not gold.unit.is_known and not quantity.unit.meanings and not is_countable(counted, quantity.value):
        words += list(counted)
    return Stated(quantity, tuple(words))


def _words(text: str) -> list[str]:
    return [word.text for word in split_words(text)]


def _unaccounted_before(before: str, quantity: Quantity, number: str) -> list[str]:
    words = _words(before)
    if len(words) > _MOST_WORDS_BEFORE:
        return words[-5:]
    allowed = NEUTRAL | MEASURED | (SIGN_WORDS if quantity.value < 0 else frozenset())
    is_year = bool(_YEAR.match(number))
    left = [
        word for word in words if word not in allowed and not (is_year and word in ("fy", "fiscal", "year", "calendar"))
    ]
    if words and (words[-1] == "by" if is_year else words[-1] in _REFERENCES):
        left.append(words[-1])
    symbols = _SYMBOL.findall(before.replace(":", "").replace("-", "").replace("\u2019", ""))
    return left + symbols


def _unaccounted_behind(rest: str, quantity: Quantity) -> list[str]:
    """Words behind a number and its unit that are no time, no source, no reason and no sum that ends in it."""
    rest = forms.TIME.sub(" ", rest)
    if not rest.strip(_AROUND) or _CHINESE_TAIL.match(rest) or is_empty(rest):
        return []
    if is_source(rest) or _is_sum(rest, quantity) or _is_reason(rest) or _is_same_again(rest, quantity):
        return []
    left: list[str] = []
    clauses = re.split(r"([,;(\u3001]|\s-\s)", rest)
    for at in range(0, len(clauses), 2):
        clause = clauses[at].strip(_AROUND)
        whole = "".join(clauses[at:])
        if at and (_is_reason(whole) or _is_same_again(whole, quantity)):
            break
        if not clause or (
            at and (is_empty(clause) or is_source(clause) or is_reference(clause) or _is_sum(clause, quantity))
        ):
            continue
        words = _words(clause)
        left += [word for word in words if word not in SMALL_WORDS] + _SYMBOL.findall(clause)
        left += [] if words or _SYMBOL.search(clause) else _marks(clause)
    return left


def _marks(clause: str) -> list[str]:
    """Digits and letters that make no word."""
    return re.findall(r"\w", clause)[:3]


def _is_reason(clause: str) -> bool:
    """Whether a clause explains, without another number and without a doubt: "so that is what the tenant owes"."""
    found = _REASON.match(clause)
    if found is None:
        return False
    words = _words(clause[found.end() :])
    return not any(
        any(map(str.isdigit, word)) or word in _DOUBT or is_scale(word) or word in COMPARISONS for word in words
    ) and not NUMBER_WORDS.search(clause)


def _is_same_again(clause: str, quantity: Quantity) -> bool:
    """Whether a clause states the same quantity in another form: "or $42,000,000" behind "$42 million"."""
    found = _AGAIN.match(clause)
    again = parse_quantity(found["again"].strip(_AROUND.replace("$", "").replace("(", ""))) if found else None
    if again is None or again.value == 0:
        return False
    if again.unit.is_known and not quantity.unit.is_known:
        is_fraction = again.unit.meanings == PERCENT and abs(quantity.value) <= 1 and not _OR.match(clause)
        return is_fraction and again.value == quantity.value * 100
    factor = factor_between(again.unit, quantity.unit) if again.unit.is_known else Decimal(1)
    return factor is not None and again.value * factor == quantity.value


def _is_sum(clause: str, quantity: Quantity) -> bool:
    """Whether a clause is a sum with this value, or with a hundredth of it for a percentage."""
    found = _REASON.match(clause)
    expression = _SUM_LEAD.sub("", clause[found.end() :] if found else clause.lstrip(" (="))
    expression = expression.strip(" .,;:!?*\"'")
    if expression.count(")") > expression.count("("):
        expression = expression.removesuffix(")")
    value = compute(expression)
    if value is None:
        return False
    return any(are_close(value * scale, quantity.value, _SUM_TOLERANCE) for scale in (1, 100))
