"""The slots of all judge endpoints: a request takes one of the endpoint with most free ones that may be called.

waits for    a free slot at an endpoint whose breaker is closed, whose pace allows a call, and which this request
             does not avoid for the moment
unblocked by a release, or the timer set for the next moment at which something may change
order        the older verdict first, so that a question that failed once does not start again at the end
"""

from __future__ import annotations

import asyncio
import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybridflow.reward_service.judge.endpoint_state import Endpoint

MIN_TIMER_S = 0.001


@dataclass(eq=False)
class _Waiter:
    ticket: int
    not_before: Mapping[str, float]
    granted: asyncio.Future[Endpoint]


class Slots:
    """Used within one event loop, whose clock is that of the endpoints."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = endpoints
        self._loop = asyncio.get_running_loop()
        self._waiters: list[_Waiter] = []  # by ticket
        self._timer: asyncio.TimerHandle | None = None

    @property
    def down_since(self) -> float | None:
        """Since when no endpoint at all has answered; None where one may."""
        times = [endpoint.breaker.down_since for endpoint in self.endpoints]
        return None if None in times else max(time for time in times if time is not None)

    async def acquire(self, ticket: int, not_before: Mapping[str, float]) -> Endpoint:
        """A slot, taken; give it back with `release`.

        Args:
            ticket: Number of the verdict; the lowest is served first.
            not_before: By url, time before which this request avoids the endpoint; may change while it waits.
        """
        waiter = _Waiter(ticket, not_before, self._loop.create_future())
        bisect.insort(self._waiters, waiter, key=lambda waiter: waiter.ticket)
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
        self._serve()
        fit = self._find_fit(not_before)
        best = max(fit, key=lambda endpoint: (endpoint is not late, endpoint.num_free), default=None)
        if best is not None:
            best.started()
        return best

    def release(self, endpoint: Endpoint) -> None:
        """Gives a slot back; what the endpoint should know, it was told before."""
        endpoint.num_free += 1
        self._serve()

    def _find_fit(self, not_before: Mapping[str, float]) -> list[Endpoint]:
        now = self._loop.time()
        return [each for each in self.endpoints if each.admits and not_before.get(each.url, -math.inf) <= now]

    def _serve(self) -> None:
        """Grants what can be granted; looks again when a pause, a pace or an open breaker ends."""
        for waiter in list(self._waiters):
            if not any(endpoint.admits for endpoint in self.endpoints):
                break
            if fit := self._find_fit(waiter.not_before):
                self._waiters.remove(waiter)
                if not waiter.granted.done():
                    best = max(fit, key=lambda endpoint: endpoint.num_free)
                    best.started()
                    waiter.granted.set_result(best)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._loop.time()
        times = [
            max(waiter.not_before.get(each.url, -math.inf), each.next_at, each.breaker.retry_at)
            for each in self.endpoints
            if each.num_free > 0
            for waiter in self._waiters
        ]
        ahead = min((time for time in times if time > now), default=None)
        if ahead is not None:
            self._timer = self._loop.call_at(max(ahead, now + MIN_TIMER_S), self._serve)
