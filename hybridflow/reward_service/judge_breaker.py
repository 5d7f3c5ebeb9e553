"""Circuit breaker of one judge endpoint: a pure state machine over an injected clock.

    closed --half of the last calls failed--> open --its time is over--> half open --success--> closed
                                               ^                             |
                                               '---- failure: twice the time -'

Open, nothing is sent, so that a server that is down costs no time and one that is coming up is not run over. Half open,
one call at a time goes through.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half_open"]

WINDOW = 20
"""Calls that are looked back on."""
MIN_CALLS = 8
"""Fewer calls than this say nothing about a server."""
FAILURE_FRACTION = 0.5
OPEN_S = 1.0
"""First time that it stays open; doubled by each probe that fails, up to MAX_OPEN_S."""
MAX_OPEN_S = 30.0


class Breaker:
    """Whether an endpoint may be called.

    Args:
        clock: Seconds of a clock that never goes back.
        report: Called once for each change with what happened, for a log.
    """

    def __init__(self, clock: Callable[[], float], report: Callable[[str], None]) -> None:
        self._clock = clock
        self._report = report
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)
        self._open_s = OPEN_S
        self._open_until = -math.inf
        self._is_probing = False
        self.down_since: float | None = None
        """When it opened, where no call has succeeded since; None while closed."""
        self.num_opened = 0
        self.why = ""
        """The failure that opened it."""

    @property
    def state(self) -> State:
        if self.down_since is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half_open"

    @property
    def admits(self) -> bool:
        """Whether a call may start now."""
        return self.down_since is None or (self._clock() >= self._open_until and not self._is_probing)

    @property
    def retry_at(self) -> float:
        """When it will admit a call again, by the clock; now or in the past where it does."""
        return self._open_until

    def started(self) -> None:
        """A call starts; half open, it is the probe."""
        if self.down_since is not None:
            self._is_probing = True

    def succeeded(self) -> None:
        """The server answered, if only to say that it is busy."""
        self._is_probing = False
        self._outcomes.append(True)
        if self.down_since is not None:
            self._report(f"answers again after {self._clock() - self.down_since:.0f} s")
            self.down_since = None
            self._open_s = OPEN_S
            self._outcomes.clear()

    def failed(self, why: str) -> None:
        """The server failed, or did not answer."""
        self._is_probing = False
        now = self._clock()
        if self.down_since is not None:
            if now >= self._open_until:
                self._open_s = min(2 * self._open_s, MAX_OPEN_S)
                self._open_until = now + self._open_s
            return
        self._outcomes.append(False)
        num_failed = self._outcomes.count(False)
        if len(self._outcomes) >= MIN_CALLS and num_failed >= FAILURE_FRACTION * len(self._outcomes):
            self.down_since, self._open_until = now, now + self._open_s
            self.num_opened += 1
            self.why = why
            self._report(
                f"{num_failed} of its last {len(self._outcomes)} calls failed, last: {why}; nothing is sent for "
                f"{self._open_s:.0f} s"
            )

    def abandoned(self) -> None:
        """A call was given up for a reason that says nothing about the server."""
        self._is_probing = False
