"""Completion ids that are done with: what still arrives for them is a duplicate, or late, and not unexpected."""

from __future__ import annotations

from typing import Literal

NUM_REMEMBERED = 10_000
"""Older ids are told apart from ids never expected no more."""

Fate = Literal["scored", "forgotten"]


class Past:
    """What became of the last `NUM_REMEMBERED` ids."""

    def __init__(self) -> None:
        self._fates: dict[str, Fate] = {}  # oldest first

    def __contains__(self, completion_id: object) -> bool:
        return completion_id in self._fates

    def add(self, completion_id: str, fate: Fate) -> None:
        self._fates[completion_id] = fate
        if len(self._fates) > NUM_REMEMBERED:
            del self._fates[next(iter(self._fates))]

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
