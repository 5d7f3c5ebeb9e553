"""When to call a judge: pauses after failures, requests per second, when an answer is late. Pure; clocks injected."""

from __future__ import annotations

import email.utils
import math
import random
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

BASE_S = 0.1
CAP_S = 8.0

REMEMBERED_OUTCOMES = 20

REMEMBERED_ANSWERS = 100
MIN_ANSWERS = 16
LATE_QUANTILE = 0.95
LATE_FACTOR = 1.2
SHORTEST_LATE_S = 0.1
"""A pause of a busy machine is no sign of a lost request."""


def compute_backoff_s(num_failures: int, retry_after_s: float | None, rng: random.Random) -> float:
    """Seconds until the next try after `num_failures` (from 1) failures in a row.

    Uniform in [0, BASE_S * 2^num_failures], at most CAP_S: full jitter, so that calls that failed together do not come
    back together (Brooker, "Exponential backoff and jitter", 2015). Never less than what the server asked for.
    """
    jittered = rng.uniform(0.0, min(CAP_S, BASE_S * 2.0 ** min(num_failures, 30)))
    return max(jittered, retry_after_s or 0.0)


def read_retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or an HTTP date (RFC 9110, 10.2.3); None for neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        seconds = (at - (now or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


class Strain:
    """Whether a server refuses or fails most of what it is asked.

    Only then do pauses grow with each failure of a question: at a server that answers most of the others, a question
    that failed five times was unlucky, and a pause of seconds would help nobody. So a server is asked at most about
    twice as often as it answers.
    """

    def __init__(self) -> None:
        self._outcomes: deque[bool] = deque(maxlen=REMEMBERED_OUTCOMES)

    def told(self, *, is_answer: bool) -> None:
        """What became of one request."""
        self._outcomes.append(is_answer)

    @property
    def is_high(self) -> bool:
        """More than half of the last outcomes were no answers."""
        return 2 * self._outcomes.count(False) > len(self._outcomes)


class Pace:
    """At most `per_second` calls a second, evenly spaced; None: any number."""

    def __init__(self, per_second: float | None, clock: Callable[[], float]) -> None:
        self._gap_s = 1.0 / per_second if per_second else 0.0
        self._clock = clock
        self.next_at = -math.inf
        """Earliest time of the next call, by the clock."""

    @property
    def admits(self) -> bool:
        return self._clock() >= self.next_at

    def started(self) -> None:
        self.next_at = max(self._clock(), self.next_at) + self._gap_s


class Latency:
    """How long answers take, and from when on one is late.

    Late is LATE_FACTOR times the 95th percentile of the last answers, at least SHORTEST_LATE_S and at most
    `longest_s`, which also stands until enough are known: MIN_ANSWERS, and two for each request that ever was side by
    side with others, as of those that started together the fast ones are known first.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._num_needed = MIN_ANSWERS
        self._seconds: deque[float] = deque(maxlen=REMEMBERED_ANSWERS)
        self._late_s = longest_s

    def started(self, num_in_flight: int) -> None:
        """A request has started, and so many are under way."""
        self._num_needed = min(max(self._num_needed, 2 * num_in_flight), REMEMBERED_ANSWERS)

    def answered(self, seconds: float) -> None:
        self._seconds.append(seconds)
        if len(self._seconds) >= self._num_needed:
            ordered = sorted(self._seconds)
            quantile = ordered[math.ceil(LATE_QUANTILE * len(ordered)) - 1]
            self._late_s = min(self._longest_s, max(SHORTEST_LATE_S, LATE_FACTOR * quantile))

    def late_s(self, num_late: int) -> float:
        """Seconds to wait for an answer when this question was late `num_late` times already: doubled by each, so that
        a server that has become slower is waited for."""
        return min(self._longest_s, self._late_s * 2.0**num_late)
