"""Whether an engine lives: answers and progress within a bounded time. Pure; the caller's clock is handed in.

An engine is asked for its status at intervals. It hangs if it owes an answer for `hang_timeout_s` (its actor is
stopped or stuck), or if it answers while nothing moves in it for as long although it has work (its scheduler or
detokenizer is stopped, or a rank of it waits for a peer for ever).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStatus:
    """How an engine is doing."""

    progress: tuple[int, ...]
    """Changes while the engine works: completions delivered, and what SGLang's scheduler says of its load."""
    num_in_flight: int
    """Completions that it owes."""


class EngineHealth:
    """State of one engine between its start and its end. Times are seconds of one monotonic clock."""

    def __init__(self, now: float, hang_timeout_s: float) -> None:
        self._hang_timeout_s = hang_timeout_s
        self._asked_at: float | None = None
        self._moved_at = now
        self._progress: tuple[int, ...] | None = None
        self._has_work = False
        self.num_moves = 0
        """Looks that found it further than the one before."""

    def given_work(self, now: float) -> None:
        """Work was sent; time without progress counts from here."""
        self._moved_at = max(self._moved_at, now)
        self._has_work = True

    def asked(self, now: float) -> None:
        """A status was asked for, and the one before has been answered."""
        self._asked_at = now

    def answered(self, now: float, progress: tuple[int, ...], num_in_flight: int) -> None:
        """The status came. `progress` is any state that changes while the engine works."""
        self._asked_at = None
        self.num_moves += self._progress is not None and progress != self._progress
        if progress != self._progress or not num_in_flight:
            self._moved_at = now
        self._progress = progress
        self._has_work = num_in_flight > 0

    def complaint(self, now: float) -> str | None:
        """Why the engine is taken for hung, or None."""
        if self._asked_at is not None and now - self._asked_at > self._hang_timeout_s:
            return f"it has not answered for {now - self._asked_at:.1f} s"
        if self._has_work and now - self._moved_at > self._hang_timeout_s:
            return f"it has work, and nothing has moved in it for {now - self._moved_at:.1f} s"
        return None
