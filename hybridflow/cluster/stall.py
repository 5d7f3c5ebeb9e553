"""When a run stands still: a deadline per phase, counted from the last sign of life. Pure; the clock is handed in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

REPORT_AFTER_S = 10.0
"""From the deadline to the report, at the latest."""
END_AFTER_S = 30.0
"""From the deadline to the end of the run."""

Action = Literal["report", "end"]


class StallClock:
    """The phase under way and its last sign of life. Times are seconds of one monotonic clock.

    Args:
        limits: By phase, seconds without a sign of life that are a stall. A phase that is not in it has no deadline.
    """

    def __init__(self, limits: Mapping[str, float]) -> None:
        self._limits = limits
        self.phase = ""
        self._moved_at = 0.0
        self._reported = False

    def enter(self, phase: str, now: float) -> None:
        """A phase begins, or "" for none. That is a sign of life."""
        self.phase = phase
        self.moved(now)

    def moved(self, now: float) -> None:
        """A sign of life: a worker entered another span, a completion or a verdict arrived."""
        self._moved_at = max(self._moved_at, now)
        self._reported = False

    @property
    def limit_s(self) -> float | None:
        return self._limits.get(self.phase)

    def seconds_still(self, now: float) -> float:
        return now - self._moved_at

    def check(self, now: float) -> Action | None:
        """ "report" once when the deadline has passed, "end" `END_AFTER_S` after it, else None."""
        limit = self.limit_s
        if limit is None or self.seconds_still(now) <= limit:
            return None
        if self.seconds_still(now) > limit + END_AFTER_S:
            return "end"
        if not self._reported:
            self._reported = True
            return "report"
        return None
