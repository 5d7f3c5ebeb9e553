"""Keeps what a pure function of one text gave for the last short texts: the golds of a group, the pieces of one answer.

Bounded by bytes, not by entries alone: a long text is computed again each time. Some 10 MB at most for each function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

Result = TypeVar("Result")

NUM_REMEMBERED, REMEMBERED_CHARS = 128, 1_000


def remember(function: Callable[[str], Result]) -> Callable[[str], Result]:
    """`function`, with its results for the last NUM_REMEMBERED texts of up to REMEMBERED_CHARS characters kept."""
    kept = lru_cache(maxsize=NUM_REMEMBERED)(function)

    @wraps(function)
    def call(text: str) -> Result:
        return (kept if len(text) <= REMEMBERED_CHARS else function)(text)

    return call
