"""Completion ids that are done with: what still arrives for them is a duplicate, or late, and not unexpected."""

from __future__ import annotations

from collections import deque
from typing import Literal

NUM_REMEMBERED = 10_000
"""Older ids are told apart from ids never expected no more."""

Fate = Literal["scored", "forgotten"]


class Past:
    """What became of the last `NUM_REMEMBERED` ids."""

    def __init__(self) -> None:
        self._fates: dict[str, Fate] = {}
        self._oldest: deque[str] = deque()  # a dict finds its own first key by a walk over all that were deleted

    def __contains__(self, completion_id: object) -> bool:
        return completion_id in self._fates

    def add(self, completion_id: str, fate: Fate) -> None:
        if completion_id not in self._fates:
            self._oldest.append(completion_id)
        self._fates[completion_id] = fate
        if len(self._oldest) > NUM_REMEMBERED:
            del self._fates[self._oldest.popleft()]

    def why_no_completion(self, completion_id: str) -> str:
        """The counter of a completion that nobody waits for."""
        return self._why(completion_id, "completion")

    def why_no_verdict(self, completion_id: str) -> str:
        """The counter of a verdict that nobody waits for."""
        return self._why(completion_id, "verdict")

    def _why(self, completion_id: str, what: str) -> str:
        fate = self._fates.get(completion_id)
        reason = {"scored": "duplicate", "forgotten": "late", None: "unexpected"}[fate]
        return f"{reason}_{what}"
