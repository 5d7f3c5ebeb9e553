"""Weight sync of several engines: begin on all, each round made once and handed to all, end on all."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hybridflow.cluster.workers import Call
from hybridflow.errors import WeightSyncError
from hybridflow.observability.reporter import Reporter
from hybridflow.protocols import WeightSource
from hybridflow.rollout.driver.engine_handle import EngineDiedError, EngineHandle
from hybridflow.weights.broadcast import Broadcast, BroadcastGroup
from hybridflow.weights.manifest import TensorEntry

MAX_UNDER_WAY = 2
"""Rounds that an engine may be behind: the next is made while the last is loaded."""


@dataclass
class SyncResult:
    """Outcome of a weight sync: each engine is in one of the two."""

    confirmed: dict[str, list[TensorEntry]] = field(default_factory=dict)
    """By engine: what it says it loaded."""
    died: dict[str, str] = field(default_factory=dict)
    """By engine: how that showed. The others were not held up by it for longer than its time limit."""


class WeightSync:
    """Hands weights of `version` to `handles`, which must have started. Used once."""

    def __init__(self, handles: list[EngineHandle], version: int, reporter: Reporter) -> None:
        self._alive = {handle.name: handle for handle in handles}
        self._version = version
        self._reporter = reporter
        self._result = SyncResult()
        self._under_way: deque[dict[str, Call]] = deque()

    @property
    def num_alive(self) -> int:
        """Engines that take part, and have not died since."""
        return len(self._alive)

    def run(self, source: WeightSource) -> SyncResult:
        """The whole sync. The source begins after the engines and ends after them.

        Raises WeightSyncError for a tensor that changed on the way or an engine that confirms another version, and the
        error of a train worker that broke off. Then the source is not ended: the run does.
        """
        self._wait(self._call("begin_weights", self._version))
        source.begin_sync(self._version)
        number = 0
        while (round_ := source.next_round()) is not None:
            if isinstance(round_, BroadcastGroup):
                self._join(round_)
                continue
            number += 1
            self._load(round_)
            self._reporter.progress(f"weights version {self._version}: bucket {number} to {', '.join(self._alive)}")
        while self._under_way:
            self._wait(self._under_way.popleft())
        self._confirm()
        source.end_sync(self._result.confirmed)
        return self._result

    def _load(self, round_: Any) -> None:
        """Passes a round on; returns while it is loaded, once the one before is.

        A broadcast reaches all ranks of all engines in the order in which it is sent; so each ends before the next is
        announced, which the sender gathers meanwhile.
        """
        self._under_way.append(self._call("load_bucket", round_))
        if len(self._under_way) == (1 if isinstance(round_, Broadcast) else MAX_UNDER_WAY):
            self._wait(self._under_way.popleft())

    def _confirm(self) -> None:
        for name, (confirmed, entries) in self._wait(self._call("end_weights")).items():
            if confirmed != self._version:
                raise WeightSyncError(f"{name} confirms weights version {confirmed}, {self._version} was sent")
            self._result.confirmed[name] = entries

    def _join(self, group: BroadcastGroup) -> None:
        """The sender is rank 0, the ranks of the engines follow in order; where none is left it is alone."""
        each = (group.world_size - 1) // max(1, len(self._alive))
        calls = {
            name: handle.worker.call("join_group", group, 1 + place * each)
            for place, (name, handle) in enumerate(self._alive.items())
        }
        self._wait(calls)

    def _call(self, method: str, *args: Any) -> dict[str, Call]:
        return {name: handle.worker.call(method, *args) for name, handle in self._alive.items()}

    def _wait(self, calls: dict[str, Call]) -> dict[str, Any]:
        """Results of the engines that are still there."""
        results: dict[str, Any] = {}
        for name, call in calls.items():
            if name not in self._alive:
                continue
            try:
                results[name] = self._alive[name].result(call)
            except EngineDiedError as error:
                self._result.died[name] = str(error)
                del self._alive[name]
        return results
