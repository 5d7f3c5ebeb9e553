"""What the reward stream knows and decides, message by message: a machine without sockets, threads or locks.

It joins who scores what (dispatch.py) with how fast engines may send (flow.py) and with the connections of the moment.
Messages go in; frames to send and scored completions come out. It outlives its connections: `reconnect` forgets them,
and engines, workers and leases bring back the rest.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable

from hybridflow.wire.codec import encode, join
from hybridflow.wire.dispatch import Result, ScoreDispatch
from hybridflow.wire.flow import EngineFlow
from hybridflow.wire.messages import (
    Accepted,
    Bye,
    Finished,
    FromEngine,
    FromWorker,
    Ready,
    ScoreReply,
    Work,
)

HELD_NOTICE_S = 30.0
"""That engines are held back is said at most this often."""

_logger = logging.getLogger(__name__)


class Broker:
    """State of one reward stream; times are its own clock, `clock_s`, which whoever drives it moves on.

    Args:
        admit: Says whether a finished completion counts.
        dispatch: Who scores what.
        max_pending_bytes: Memory of waiting completions above which engines are held back.
    """

    def __init__(self, admit: Callable[[Finished], bool], dispatch: ScoreDispatch, max_pending_bytes: int) -> None:
        self.dispatch = dispatch
        self.flow = EngineFlow(max_pending_bytes)
        self.clock_s = 0.0
        self._admit = admit
        self._identities: dict[str, bytes] = {}  # worker id -> ROUTER identity of its present connection
        self._scored: list[Result] = []
        self._max_pending = 0
        self._held_said_at: float | None = None

    def take_from_engine(self, identity: bytes, messages: Iterable[FromEngine]) -> None:
        """What came on one connection of an engine."""
        for message in messages:
            if isinstance(message, Finished):
                if self._admit(message) and (aborted := self.dispatch.finished(message.packed)) is not None:
                    self._scored.append(aborted)
                self.flow.accepted(identity, message.engine_id, message.number)
            else:
                self.flow.asked(identity, message.engine_id, message.number)

    def take_from_worker(self, identity: bytes, messages: Iterable[FromWorker]) -> None:
        """What came on one connection of a worker."""
        for message in messages:
            match message:
                case ScoreReply(worker_id, completion_id, verdict):
                    scored = self.dispatch.replied(worker_id, completion_id, verdict, self.clock_s)
                    if scored is not None:
                        self._scored.append(scored)
                case Ready(worker_id):
                    self._scored += self.dispatch.ready(message, self.clock_s)
                    self._identities[worker_id] = identity
                case Bye(worker_id):
                    if self._identities.get(worker_id) == identity:
                        del self._identities[worker_id]
                        self.dispatch.left(worker_id)

    def lapse(self) -> None:
        """Takes back what was held for too long."""
        self.dispatch.lapse(self.clock_s)
        self._identities = {name: self._identities[name] for name in self._reachable()}

    def lose(self, worker_id: str, why: str) -> None:
        """A worker is gone: its items go to others."""
        self._identities.pop(worker_id, None)
        self._scored += self.dispatch.lost(worker_id, why)

    def reconnect(self) -> None:
        """All connections are gone."""
        self.dispatch.counters["stream_restarted"] += 1
        self._identities.clear()
        self.flow.reconnect()

    def take_work(self) -> list[tuple[str, bytes, list[bytes]]]:
        """Leases what can be leased: (worker id, identity, frames to send) of each worker that gets any."""
        work: defaultdict[str, list[bytearray]] = defaultdict(list)
        for worker_id, request in self.dispatch.assign(self._reachable(), self.clock_s):
            work[worker_id].append(encode(Work(request)))
        self._max_pending = max(self._max_pending, self.dispatch.num_pending)
        return [(worker_id, self._identities[worker_id], join(frames)) for worker_id, frames in work.items()]

    def take_answers(self, num_bytes_scored: int) -> list[tuple[bytes, Accepted]]:
        """(identity, answer) of each engine that is to be told something; so many bytes wait for next()."""
        waiting = self.dispatch.pending_bytes + num_bytes_scored
        if self.flow.update(waiting, self.clock_s) and self.flow.is_held:
            self._say_held(waiting)
        return self.flow.take_answers()

    def take_scored(self) -> list[Result]:
        """Scored since the last call."""
        scored, self._scored = self._scored, []
        return scored

    def take_max_pending(self) -> int:
        """Most completions without a verdict since the last call."""
        highest, self._max_pending = self._max_pending, self.dispatch.num_pending
        return highest

    @property
    def identities(self) -> list[bytes]:
        """Of the workers' connections."""
        return list(self._identities.values())

    def _reachable(self) -> list[str]:
        return [name for name in self.dispatch.workers if name in self._identities]

    def _say_held(self, waiting: int) -> None:
        self.dispatch.counters["engines_held_back"] += 1
        if self._held_said_at is None or self.clock_s - self._held_said_at >= HELD_NOTICE_S:
            self._held_said_at = self.clock_s
            _logger.warning(
                "rewards lag: engines are held back, as %d completions wait for a verdict and the rest of %.1f MiB for "
                "the driver; %d reward workers are there; %.1f s in all so far",
                *(self.dispatch.num_pending, waiting / 2**20, len(self._identities), self.flow.held_s(self.clock_s)),
            )
