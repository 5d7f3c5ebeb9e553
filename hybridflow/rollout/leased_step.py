"""The groups of a step in the hands of the engines, as two threads see them.

The thread that receives completions calls `admit`; the driver's main thread calls all else.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable

from hybridflow.rollout.leases import LeaseDispatch
from hybridflow.rollout.report import Totals
from hybridflow.types import GroupRequest, Lease, RolloutReport
from hybridflow.wire.messages import Finished


class LeasedStep:
    """`LeaseDispatch` and the totals of what it admitted, behind one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._dispatch = LeaseDispatch()
        self._totals = Totals()

    def begin(self, requests: Iterable[GroupRequest], max_new_tokens: int) -> None:
        """Queues the groups of a step; its totals begin at zero."""
        with self._lock:
            self._totals = Totals()
            self._dispatch.add(requests, max_new_tokens)

    def admit(self, message: Finished) -> bool:
        """Whether a finished completion counts, see `leases`."""
        with self._lock:
            if not self._dispatch.admit(message.attempt, message.packed):
                return False
            self._totals.add(message.packed)
            return True

    def report(self, take_events: Callable[[], Counter[str]]) -> RolloutReport | None:
        """Totals and events since the report before, what happened between steps included; None while any is to come.

        `take_events` gives what else is to be told of, and is called only then.
        """
        with self._lock:
            if self._dispatch.num_unfinished:
                return None
            events, self._dispatch.counters = take_events() + self._dispatch.counters, Counter()
            return self._totals.report(events)

    def assign(self) -> dict[str, list[Lease]]:
        with self._lock:
            return self._dispatch.assign()

    def drop_queued(self) -> list[str]:
        with self._lock:
            return self._dispatch.drop_queued()

    def engine_up(self, engine: str, capacity_tokens: int) -> None:
        with self._lock:
            self._dispatch.engine_up(engine, capacity_tokens)

    def engine_down(self, engine: str) -> list[str]:
        with self._lock:
            return self._dispatch.engine_down(engine)

    def in_flight(self, engines: Iterable[str]) -> dict[str, int]:
        """By engine: completions that it owes."""
        with self._lock:
            return {name: self._dispatch.num_in_flight(name) for name in engines}

    def num_left(self) -> tuple[int, int]:
        """(completions to come, groups that no engine holds)."""
        with self._lock:
            return self._dispatch.num_unfinished, self._dispatch.num_queued
