"""Which endpoint takes the next request: the one with most free slots of those that may be called.

waits for    a free slot at an endpoint whose breaker is closed, whose pace allows a call, and which this request
             does not avoid for the moment
unblocked by a release, or the timer set for the next moment at which something may change
order        the older verdict first, so that a question that failed once does not start again at the end
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hybridflow.reward_service.judge_breaker import Breaker
from hybridflow.reward_service.judge_timing import Latency, Pace, Strain

_logger = logging.getLogger(__name__)

MIN_TIMER_S = 0.001


class Endpoint:
    """What is known of one server."""

    def __init__(
        self, url: str, num_slots: int, per_second: float | None, late_after_s: float, clock: Callable[[], float]
    ) -> None:
        self.url = url
        self.num_free = self._num_slots = num_slots
        self.latency = Latency(late_after_s)
        self.strain = Strain()
        self.answered_at = -math.inf
        """When it last answered any request, by the clock."""
        self.pace = Pace(per_second, clock)
        self.breaker = Breaker(clock, lambda what: _logger.warning("judge %s %s", url, what))

    @property
    def admits(self) -> bool:
        return self.num_free > 0 and self.breaker.admits and self.pace.admits

    def started(self) -> None:
        self.num_free -= 1
        self.latency.started(self._num_slots - self.num_free)
        self.breaker.started()
        self.pace.started()


@dataclass(eq=False)
class _Waiter:
    ticket: int
    not_before: Mapping[str, float]
    granted: asyncio.Future[Endpoint] = field(repr=False)


class EndpointPool:
    """Slots of all endpoints; used within one event loop.

    Args:
        clock: Seconds, the clock of the loop that `call_at` understands.
    """

    def __init__(
        self,
        urls: Sequence[str],
        num_slots: int,
        per_second: float | None,
        late_after_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.endpoints = [Endpoint(url, num_slots, per_second, late_after_s, clock) for url in urls]
        self._clock = clock
        self._waiters: list[_Waiter] = []  # by ticket
        self._timer: asyncio.TimerHandle | None = None

    @property
    def down_since(self) -> float | None:
        """Since when no endpoint at all has answered; None where one may."""
        times = [endpoint.breaker.down_since for endpoint in self.endpoints]
        return None if any(time is None for time in times) else max(time for time in times if time is not None)

    @property
    def may_ask(self) -> bool:
        """Whether some breaker lets a request through now."""
        return any(endpoint.breaker.admits for endpoint in self.endpoints)

    async def acquire(self, ticket: int, not_before: Mapping[str, float]) -> Endpoint:
        """A slot, taken; give it back with `release`.

        Args:
            ticket: Number of the verdict; the lowest is served first.
            not_before: By url, time before which this request avoids the endpoint; may change while it waits.
        """
        waiter = _Waiter(ticket, not_before, asyncio.get_running_loop().create_future())
        at = len(self._waiters)
        while at and self._waiters[at - 1].ticket > ticket:
            at -= 1
        self._waiters.insert(at, waiter)
        self._serve()
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif waiter.granted.done() and not waiter.granted.cancelled():
                endpoint = waiter.granted.result()
                endpoint.breaker.abandoned()
                self.release(endpoint)
            raise

    def acquire_spare(self, late: Endpoint, not_before: Mapping[str, float]) -> Endpoint | None:
        """A slot that is free this moment and that nobody waits for, elsewhere than at `late` if possible; or None."""
        now = self._clock()
        free = [e for e in self.endpoints if e.admits and not_before.get(e.url, -math.inf) <= now]
        if not free or self._any_ready_waiter():
            return None
        best = max(free, key=lambda endpoint: (endpoint is not late, endpoint.num_free))
        best.started()
        return best

    def release(self, endpoint: Endpoint) -> None:
        """Gives a slot back; what the breaker should know, it was told before."""
        endpoint.num_free += 1
        self._serve()

    def _any_ready_waiter(self) -> bool:
        now = self._clock()
        return any(self._choose(waiter, now) is not None for waiter in self._waiters)

    def _serve(self) -> None:
        now = self._clock()
        for waiter in list(self._waiters):
            if not any(endpoint.admits for endpoint in self.endpoints):
                break
            endpoint = self._choose(waiter, now)
            if endpoint is None:
                continue
            self._waiters.remove(waiter)
            if not waiter.granted.done():
                endpoint.started()
                waiter.granted.set_result(endpoint)
        self._set_timer(now)

    def _choose(self, waiter: _Waiter, now: float) -> Endpoint | None:
        fit = [e for e in self.endpoints if e.admits and waiter.not_before.get(e.url, -math.inf) <= now]
        return max(fit, key=lambda endpoint: endpoint.num_free, default=None)

    def _set_timer(self, now: float) -> None:
        """Looks again when a pause, a pace or an open breaker ends; a release looks by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        times = [
            max(waiter.not_before.get(e.url, -math.inf), e.pace.next_at, e.breaker.retry_at)
            for waiter in self._waiters
            for e in self.endpoints
            if e.num_free > 0
        ]
        ahead = [time for time in times if time > now]
        if ahead:
            self._timer = asyncio.get_running_loop().call_at(max(min(ahead), now + MIN_TIMER_S), self._serve)
