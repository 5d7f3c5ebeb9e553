"""Broker of the reward stream: knows and decides, message by message, without sockets, threads or locks.

It joins who scores what (dispatcher.py) with how fast engines may send (flow.py) and the connections of the moment.
Messages go in; frames to send and scored completions come out. It outlives its connections: `reconnect` forgets them,
and engines, workers and leases bring back the rest. What nobody may say is counted, told in the log once a minute, and
dropped.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable

from hybridflow.wire.codec import Batch
from hybridflow.wire.dispatcher import ScoreDispatcher
from hybridflow.wire.flow import EngineFlow
from hybridflow.wire.messages import Accepted, Finished, FromEngine, FromWorker, Ready, ScoredPacked, ScoreReply

HELD_NOTICE_S = 30.0
"""Least seconds between two notes that engines are held back."""
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

_logger = logging.getLogger(__name__)


class Broker:
    """State of one reward stream; times are its own clock, `clock_s`, which whoever drives it moves on.

    Args:
        admit: Says whether a finished completion counts.
        dispatcher: Who scores what.
        max_pending_bytes: Memory of waiting completions above which engines are held back.
    """

    def __init__(self, admit: Callable[[Finished], bool], dispatcher: ScoreDispatcher, max_pending_bytes: int) -> None:
        self.dispatcher = dispatcher
        self.flow = EngineFlow(max_pending_bytes)
        self.clock_s = 0.0
        self._admit = admit
        self._connected: set[bytes] = set()  # processes of workers, heard of on their present connection
        self._refusals = RefusalLog(dispatcher.counters, _logger)
        self._scored: deque[ScoredPacked] = deque()
        self._scored_bytes = 0
        self._max_pending = 0
        self._held_said_at: float | None = None

    def take_from_engine(self, identity: bytes, messages: Iterable[FromEngine]) -> None:
        """Takes what came on one connection of an engine."""
        accepted: list[int] = []
        for message in messages:
            if not self.flow.knows(identity, message.engine_id):
                self.dispatcher.counters["engine_refused"] += 1
            elif isinstance(message, Finished):
                if self._admit(message):
                    self._give(self.dispatcher.finished(message.packed))
                accepted.append(message.number)
            else:
                self.flow.asked(identity, message.number)
        if accepted:
            self.flow.accepted(identity, accepted)

    def take_from_worker(self, process: bytes, messages: Iterable[FromWorker]) -> None:
        """Takes what came on one connection of a worker, of which `process` is the name."""
        for message in messages:
            if isinstance(message, Ready):
                self._give(*self.dispatcher.ready(process, message, self.clock_s))
            worker_id = self.dispatcher.name_of(process)
            if worker_id is None:
                if not isinstance(message, Ready):
                    self.dispatcher.counters["stranger"] += 1
            elif isinstance(message, Ready):
                self._connected.add(process)
            elif isinstance(message, ScoreReply):
                self._give(self.dispatcher.replied(worker_id, message.completion_id, message.verdict, self.clock_s))
            else:
                self._connected.discard(process)
                self.dispatcher.left(worker_id)

    def refuse(self, reason: str, why: str) -> None:
        """Counts a message that cannot be read."""
        self.dispatcher.counters[reason] += 1
        self._refusals.examples[reason] = why

    def lapse(self) -> None:
        """Takes back what was held for too long."""
        self.dispatcher.lapse(self.clock_s)
        self._connected = {self.dispatcher.process_of(worker_id) for worker_id in self._reachable()}
        self._refusals.tell(self.clock_s)

    def lose(self, worker_id: str, why: str) -> None:
        """A worker is gone: its items go to others."""
        self._give(*self.dispatcher.lost(worker_id, why))

    def reconnect(self) -> None:
        """All connections are gone."""
        self.dispatcher.counters["stream_restarted"] += 1
        self._connected.clear()
        self.flow.reconnect()

    def take_work(self) -> list[tuple[str, bytes, list[bytearray]]]:
        """Leases what can be leased: (worker id, its process, frames to send) of each worker that gets any."""
        batches: defaultdict[str, Batch] = defaultdict(Batch)
        for worker_id, work in self.dispatcher.assign(self._reachable(), self.clock_s):
            batches[worker_id].add(work)
        self._max_pending = max(self._max_pending, self.dispatcher.num_pending)
        return [
            (worker_id, self.dispatcher.process_of(worker_id), batch.take_frames())
            for worker_id, batch in batches.items()
        ]

    def take_answers(self) -> list[tuple[bytes, Accepted]]:
        """(identity, answer) of each engine that is to be told something."""
        waiting = self.dispatcher.pending_bytes + self._scored_bytes
        if self.flow.update(waiting, self.clock_s) and self.flow.is_held:
            self._say_held(waiting)
        return self.flow.take_answers()

    @property
    def has_scored(self) -> bool:
        """Whether something scored waits to be taken."""
        return bool(self._scored)

    def take_scored(self, most: int) -> list[ScoredPacked]:
        """The oldest of what is scored and was not taken."""
        scored = [self._scored.popleft() for _ in range(min(len(self._scored), most))]
        self._scored_bytes -= sum(result.num_bytes for result in scored)
        return scored

    def take_max_pending(self) -> int:
        """Most completions without a verdict since the last call."""
        highest, self._max_pending = self._max_pending, self.dispatcher.num_pending
        return highest

    @property
    def connected(self) -> list[bytes]:
        """Workers that something can be sent to."""
        return [self.dispatcher.process_of(worker_id) for worker_id in self._reachable()]

    def _give(self, *scored: ScoredPacked | None) -> None:
        for result in scored:
            if result is not None:
                self._scored.append(result)
                self._scored_bytes += result.num_bytes

    def _reachable(self) -> list[str]:
        return [name for name in self.dispatcher.workers if self.dispatcher.process_of(name) in self._connected]

    def _say_held(self, waiting: int) -> None:
        self.dispatcher.counters["engines_held_back"] += 1
        if self._held_said_at is None or self.clock_s - self._held_said_at >= HELD_NOTICE_S:
            self._held_said_at = self.clock_s
            _logger.warning(
                "rewards lag: engines are held back, as %d completions wait for a verdict and the rest of %.1f MiB for "
                "the driver; %d reward workers are there; %.1f s in all so far",
                *(self.dispatcher.num_pending, waiting / 2**20, len(self._reachable()), self.flow.held_s(self.clock_s)),
            )


class RefusalLog:
    """Log of what the stream refuses, one line a minute: strangers must not fill it."""

    def __init__(self, counters: Counter[str], logger: logging.Logger) -> None:
        self._counters = counters
        self._logger = logger
        self.examples: dict[str, str] = {}
        """The last one of each kind, where that says more."""
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
