"""JSON of any origin. Python's parser has no bound but its own stack, and its errors are of three kinds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

MAX_DEPTH = 64
"""Lists and objects within one another. Far below Python's stack, so that whoever walks the value needs no bound."""
MAX_DIGITS = 1000
"""Most digits of a number. To read one of n digits takes time that grows with n x n."""
MAX_FILE_BYTES = 256 * 2**20
"""Most bytes of a file that is one JSON value."""
_DIGITS_REMEDY = "write it as a text, in quotes"


class Unreadable(ValueError):
    """Text that is malformed, or beyond a bound. The message says what is wrong, and the remedy."""


def parse_json(text: str | bytes, *, checks_pairs: bool = True) -> Any:
    """The value. Raises Unreadable: broken, too deep, numbers too long, a key twice, not UTF-8, half a surrogate pair.

    The last of these only where `checks_pairs`; without, `check_pairs` says it of each part of the value.
    """
    if isinstance(text, bytes):
        text = _decode(text)
    try:
        value = json.loads(text, parse_int=_whole_number, parse_float=_number, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise Unreadable(f"broken JSON at {place}: {error.msg}") from error
    except RecursionError:
        _refuse_depth()
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_too_deep(value):
        _refuse_depth()
    if checks_pairs and ("\\ud" in text or "\\uD" in text):
        check_pairs(value)
    return value


def read_json(path: Path, max_bytes: int = MAX_FILE_BYTES) -> Any:
    """The value of a whole file. Raises Unreadable, and OSError if the file system refuses."""
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise Unreadable(f"more than {max_bytes} bytes. Remedy: check that it is the file that you mean")
    return parse_json(content)


def _decode(text: bytes) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(
            f"not UTF-8 text: byte {error.object[error.start]:#04x} at place {error.start}. Remedy: save it as UTF-8"
        ) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; of two values under one key Python's parser would take the last and say nothing."""
    value = dict(pairs)
    if len(value) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise Unreadable(f"the key {key[:40]!r} is there twice. Remedy: keep one of the two values")
    return value


def _whole_number(digits: str) -> int:
    return int(_bounded(digits))


def _number(digits: str) -> float:
    return float(_bounded(digits))


def _bounded(digits: str) -> str:
    if len(digits) > MAX_DIGITS:
        raise Unreadable(f"a number of {len(digits)} digits, {digits[:10]}... Remedy: {_DIGITS_REMEDY}")
    return digits


def _refuse_depth() -> NoReturn:
    raise Unreadable(
        f"lists and objects more than {MAX_DEPTH} deep within one another. Remedy: make it flatter"
    ) from None


def _is_too_deep(value: Any) -> bool:
    """Without recursion: level by level."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def check_pairs(value: Any) -> None:
    """JSON can name half of a surrogate pair, which no other process could be told: Unreadable."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Unreadable(
            f"{error.object[error.start]!a} is half of a surrogate pair. Remedy: write whole characters"
        ) from error
