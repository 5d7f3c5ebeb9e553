"""Reads a time of day, so that "2:30 p.m." and "14:30" are the same answer.

"2:30" alone may be of either half of the day: it equals no other time than itself.
"""

from __future__ import annotations

import re

from hybridflow.rewards.text.characters import unify

_TIME = re.compile(
    r"(?:at )?(?P<hour>\d{1,2})(?:[:.](?P<minute>[0-5]\d))?(?::00)?(?: ?(?:(?P<half>[ap])\.?m\.?|h|hrs|hours))?",
    re.IGNORECASE,
)


def parse_time(answer: str) -> int | None:
    """The minutes since midnight that all of `answer` is; None where it is no time of day, or one of two."""
    found = _TIME.fullmatch(unify(answer).strip(" ,;"))
    if found is None or not (found["half"] or found["minute"]):
        return None
    hour, minute, half = int(found["hour"]), int(found["minute"] or 0), (found["half"] or "").lower()
    if half:
        return (hour % 12 + (12 if half == "p" else 0)) * 60 + minute if 1 <= hour <= 12 else None
    return hour * 60 + minute if 13 <= hour <= 23 or hour == 0 else None
