"""What the reward stream refuses, told in the log once a minute: strangers must not fill it."""

from __future__ import annotations

import logging
from collections import Counter

REFUSED = (
    "malformed_completion",
    "malformed_worker_message",
    "stranger",
    "worker_refused",
    "engine_refused",
    "verdict_without_lease",
    "verdict_out_of_range",
)
"""Counters of what no part of a run says while all goes well. A worker that was stopped, and comes back after its items
went to another, is among `verdict_without_lease`."""
INTERVAL_S = 60.0


class RefusalLog:
    """Watches these of `counters`."""

    def __init__(self, counters: Counter[str], logger: logging.Logger) -> None:
        self._counters = counters
        self._logger = logger
        self.examples: dict[str, str] = {}
        """What the last one was, where that says more."""
        self._told: Counter[str] = Counter()
        self._told_at = float("-inf")

    def tell(self, now: float) -> None:
        """Says what was refused since it was last said, unless that was less than a minute ago."""
        if now - self._told_at < INTERVAL_S:
            return
        new = {name: number for name in REFUSED if (number := self._counters[name] - self._told[name])}
        if new:
            self._told_at = now
            self._told.update(new)
            what = ", ".join(
                f"{name} {number}" + (f" (the last: {self.examples[name]})" if name in self.examples else "")
                for name, number in new.items()
            )
            self._logger.warning("the reward stream dropped what it must not take: %s", what)
