"""State of a judge endpoint, when it may be called and when its answer is late: pure state over an injected clock.

    closed --half of the last calls failed--> open --its time is over--> half open --success--> closed
                                               ^                             |
                                               '---- failure: twice the time -'

Open, nothing is sent, so that a server that is down costs no time and one that is coming up is not run over. Half open,
one call at a time goes through.
"""

from __future__ import annotations

import logging
import math
import random
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
"""First time that a breaker stays open; doubled by each probe that fails, up to MAX_OPEN_S."""
MAX_OPEN_S = 30.0

BASE_S = 0.1
CAP_S = 8.0

REMEMBERED_ANSWERS = 100
MIN_ANSWERS = 16
LATE_QUANTILE = 0.95
LATE_FACTOR = 1.2
SHORTEST_LATE_S = 0.1
"""A pause of a busy machine is no sign of a lost request."""

_logger = logging.getLogger(__name__)


def compute_backoff_s(num_failures: int, retry_after_s: float | None, rng: random.Random) -> float:
    """Seconds until the next try after `num_failures` (from 1) failures in a row.

    Uniform in [0, BASE_S * 2^num_failures], at most CAP_S: full jitter, so that calls that failed together do not come
    back together (Brooker, "Exponential backoff and jitter", 2015). Never less than what the server asked for.
    """
    jittered = rng.uniform(0.0, min(CAP_S, BASE_S * 2.0 ** min(num_failures, 30)))
    return max(jittered, retry_after_s or 0.0)


class Breaker:
    """Circuit breaker: whether an endpoint may be called.

    Args:
        clock: Seconds of a clock that never goes back.
        report: Called once for each change with what happened, for a log.
    """

    def __init__(self, clock: Callable[[], float], report: Callable[[str], None]) -> None:
        self._clock = clock
        self._report = report
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)
        self._open_s = OPEN_S
        self._is_probing = False
        self.retry_at = -math.inf
        """When it will admit a call again, by the clock; now or in the past where it does."""
        self.down_since: float | None = None
        """When it opened, where no call has succeeded since; None while closed."""
        self.num_opened = 0
        self.why = ""
        """The failure that opened it."""

    @property
    def state(self) -> State:
        if self.down_since is None:
            return "closed"
        return "open" if self._clock() < self.retry_at else "half_open"

    @property
    def admits(self) -> bool:
        """Whether a call may start now."""
        return self.down_since is None or (self._clock() >= self.retry_at and not self._is_probing)

    def started(self) -> None:
        """A call starts; half open, it is the probe."""
        self._is_probing = self.down_since is not None

    def succeeded(self) -> None:
        """The server answered, if only to say that it is busy."""
        self._is_probing = False
        self._outcomes.append(True)
        if self.down_since is not None:
            self._report(f"answers again after {self._clock() - self.down_since:.0f} s")
            self.down_since, self._open_s = None, OPEN_S
            self._outcomes.clear()

    def failed(self, why: str) -> None:
        """The server failed, or did not answer."""
        self._is_probing = False
        now = self._clock()
        if self.down_since is not None:
            if now >= self.retry_at:
                self._open_s = min(2 * self._open_s, MAX_OPEN_S)
                self.retry_at = now + self._open_s
            return
        self._outcomes.append(False)
        num_failed = self._outcomes.count(False)
        if len(self._outcomes) >= MIN_CALLS and num_failed >= FAILURE_FRACTION * len(self._outcomes):
            self.down_since, self.retry_at = now, now + self._open_s
            self.num_opened += 1
            self.why = why
            self._report(
                f"{num_failed} of its last {len(self._outcomes)} calls failed, last: {why}; nothing is sent for "
                f"{self._open_s:.0f} s"
            )

    def abandoned(self) -> None:
        """A call was given up for a reason that says nothing about the server."""
        self._is_probing = False


class Latency:
    """How long answers take, and from when on one is late.

    Late is LATE_FACTOR times the 95th percentile of the last answers, at least SHORTEST_LATE_S and at most
    `longest_s`, which also stands until enough are known: MIN_ANSWERS, and two for each request that ever was side by
    side with others, as of those that started together the fast ones are known first.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s = self._late_s = longest_s
        self._num_needed = MIN_ANSWERS
        self._seconds: deque[float] = deque(maxlen=REMEMBERED_ANSWERS)

    def started(self, num_in_flight: int) -> None:
        """A request has started, and so many are under way."""
        self._num_needed = min(max(self._num_needed, 2 * num_in_flight), REMEMBERED_ANSWERS)

    def answered(self, seconds: float) -> None:
        self._seconds.append(seconds)
        if len(self._seconds) >= self._num_needed:
            quantile = sorted(self._seconds)[math.ceil(LATE_QUANTILE * len(self._seconds)) - 1]
            self._late_s = min(self._longest_s, max(SHORTEST_LATE_S, LATE_FACTOR * quantile))

    def late_s(self, num_late: int) -> float:
        """Seconds to wait for an answer when this question was late `num_late` times already: doubled by each, so that
        a server that has become slower is waited for."""
        return min(self._longest_s, self._late_s * 2.0**num_late)


class Endpoint:
    """One server: its free slots, and what its answers so far say of it.

    Args:
        per_second: Calls a second, evenly spaced; None: any number.
        late_after_s: An answer is never late before.
        clock: As for `Breaker`.
    """

    def __init__(
        self, url: str, num_slots: int, per_second: float | None, late_after_s: float, clock: Callable[[], float]
    ) -> None:
        self.url = url
        self.num_free = self._num_slots = num_slots
        self.next_at = -math.inf
        """Earliest time of the next call, by the clock."""
        self.latency = Latency(late_after_s)
        self.breaker = Breaker(clock, lambda what: _logger.warning("judge %s %s", url, what))
        self._gap_s = 1.0 / per_second if per_second else 0.0
        self._clock = clock
        self._answered_at = -math.inf  # any request
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)  # whether there was an answer

    @property
    def admits(self) -> bool:
        """Whether a request may start now."""
        return self.num_free > 0 and self.breaker.admits and self._clock() >= self.next_at

    @property
    def is_strained(self) -> bool:
        """Whether it refuses or fails most of what it is asked.

        Only then do pauses grow with each failure of a question: at a server that answers most of the others, a
        question that failed five times was unlucky, and a pause of seconds would help nobody. So a server is asked at
        most about twice as often as it answers.
        """
        return 2 * self._outcomes.count(False) > len(self._outcomes)

    def started(self) -> None:
        """A request takes a slot."""
        self.num_free -= 1
        self.next_at = max(self._clock(), self.next_at) + self._gap_s
        self.latency.started(self._num_slots - self.num_free)
        self.breaker.started()

    def answered(self, seconds: float) -> None:
        """It answered a request."""
        self._answered_at = self._clock()
        self._outcomes.append(True)
        self.latency.answered(seconds)
        self.breaker.succeeded()

    def declined(self, *, is_final: bool) -> None:
        """It is up, and refuses this moment, or, finally, this question or whoever asks."""
        if not is_final:
            self._outcomes.append(False)
        self.breaker.succeeded()

    def failed(self, why: str) -> None:
        """A request failed."""
        self._outcomes.append(False)
        self.breaker.failed(why)

    def given_up(self, seconds: float) -> None:
        """Nobody waits for this request any longer.

        One late answer says little; that nobody got an answer meanwhile says that the server hangs.
        """
        if seconds >= self.latency.late_s(0) and seconds < self._clock() - self._answered_at:
            self.breaker.failed(f"{self.url}: no answer to anybody within {seconds:.1f} s")
        else:
            self.breaker.abandoned()
