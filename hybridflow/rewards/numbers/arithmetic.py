"""The value of a sum that an answer shows: "412 / 3,296", "256 plus 37", "(12 - 2) x 5". Nothing is evaluated as code.

The four operations, brackets and percent, over numbers in digits, by their usual precedence.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow

_TOKEN = re.compile(
    r"\s{0,4}(?:(?P<number>[$£€¥]?(?:\d{1,3}(?:,\d{3}){1,6}|\d{1,20})(?:\.\d{1,20})?%?)"
    r"|(?P<sign>[-+*/()x×÷])|(?P<word>plus|minus|times|less|multiplied by|divided by|over)\b)",
    re.IGNORECASE,
)
_SIGN_OF = {"plus": "+", "minus": "-", "less": "-", "times": "*", "multiplied by": "*", "divided by": "/", "over": "/"}
_SIGN_OF |= {"x": "*", "×": "*", "÷": "/"}
_CONTEXT = Context(prec=40)
_MOST_TOKENS = 40


def compute(expression: str) -> Decimal | None:
    """The value of `expression`; None where it is no sum of at least two numbers. Example: compute("6 x 7") == 42"""
    tokens: list[str] = []
    at = 0
    expression = expression.strip().rstrip(" .,;")
    while at < len(expression) and len(tokens) < _MOST_TOKENS:
        found = _TOKEN.match(expression, at)
        if found is None:
            return None
        told = found.group().strip().lower()
        tokens.append(_SIGN_OF.get(told, told))
        at = found.end()
    if at < len(expression) or sum(token[-1].isdigit() or token[-1] == "%" for token in tokens) < 2:
        return None
    try:
        value = _Sum(tokens).read_all()
    except (DivisionByZero, InvalidOperation, Overflow):
        return None
    return value


class _Sum:
    """Reads tokens from the left: a sum of products of numbers and bracketed sums."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens[::-1]

    def read_all(self) -> Decimal | None:
        value = self._sum()
        return None if self._tokens else value

    def _sum(self) -> Decimal | None:
        value = self._product()
        while value is not None and self._tokens and self._tokens[-1] in "+-":
            sign, other = self._tokens.pop(), self._product()
            if other is None:
                return None
            value = _CONTEXT.add(value, other) if sign == "+" else _CONTEXT.subtract(value, other)
        return value

    def _product(self) -> Decimal | None:
        value = self._one()
        while value is not None and self._tokens and self._tokens[-1] in "*/":
            sign, other = self._tokens.pop(), self._one()
            if other is None:
                return None
            value = _CONTEXT.multiply(value, other) if sign == "*" else _CONTEXT.divide(value, other)
        return value

    def _one(self) -> Decimal | None:
        if not self._tokens:
            return None
        token = self._tokens.pop()
        if token == "(":
            value = self._sum()
            return value if self._tokens and self._tokens.pop() == ")" else None
        if token == "-":
            value = self._one()
            return None if value is None else -value
        if not token[-1].isdigit() and token[-1] != "%":
            return None
        number = Decimal(token.strip("$£€¥%").replace(",", ""))
        return _CONTEXT.divide(number, Decimal(100)) if token.endswith("%") else number
