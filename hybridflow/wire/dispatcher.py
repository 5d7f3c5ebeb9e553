"""Dispatcher of scoring, who scores what: a pure machine. Events go in; work to send and results come out.

Life of one completion id:

    expected --finished--> queued --assign--> leased to a worker --verdict--> scored
                              ^                   |    |
                              |'-- worker lost  --'    |     after MAX_ATTEMPTS deaths: scored as Unknown
                              |    or lease lapsed     |
                              '------- unknown --------'     after `num_unknown_retries` of these: scored as Unknown

A lease has a deadline, `lease_s` after the worker last named the item among those that it holds. So a worker that is
dead, stopped or cut off loses its items, and so does one that never got them. Silence is not held against an item: a
worker never runs a verifier itself. A verdict counts only from the worker that has the lease, and within [0, 1].

A completion that was aborted is handed on without a verdict, and its id may be expected again: a later step continues
it. So may one that was withdrawn, which nobody decodes.

One register, `_items`, says which completions are outstanding; the queue orders those that are finished and free, and
a worker's leases name those that it has.

What does not fit this life is dropped and counted by reason in `counters`; nothing here raises on a message. Times are
seconds of any clock that does not go back.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from hybridflow.errors import ProtocolError
from hybridflow.types import GroupRequest, Unknown, Verdict
from hybridflow.wire.messages import Ready, Task, Work, build_completion_id
from hybridflow.wire.packed import PackedCompletion, ScoredPacked

MAX_ATTEMPTS = 3
"""Workers lost on one item before it is given up: a text that kills its verifier must not kill them all in turn."""

DEFAULT_MAX_WORKERS = 1024

NUM_SEEN = 10_000
"""Scored ids that are remembered: what still comes for an older one is taken for unexpected, not for a duplicate."""

STREAM_ITSELF = "reward-stream"
"""`scored_by` of an item that was given up."""

_encoder = msgspec.msgpack.Encoder()


@dataclass(slots=True)
class _Worker:
    process: bytes
    """Tells one that took over the id of a dead one from the same on a new connection."""
    credits: int
    heard_at: float
    leases: dict[str, float] = field(default_factory=dict)
    """Completion id -> deadline, in order of assignment; len <= credits."""


class _Expected(msgspec.Struct, frozen=True, gc=False):
    """Identity and task of the completions of one group, as the driver expects them."""

    group_id: str
    prompt_id: str
    task: memoryview
    """As in `Work`."""


class _Item(msgspec.Struct, gc=False):
    """A completion without a verdict."""

    expected: _Expected
    completion: PackedCompletion | None = None
    """None: an engine decodes it."""
    num_lost: int = 0
    num_unknown: int = 0


class SeenIds:
    """The last `NUM_SEEN` ids that were added."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._oldest: deque[str] = deque()

    def __contains__(self, completion_id: object) -> bool:
        return completion_id in self._ids

    def add(self, completion_id: str) -> None:
        """Takes one that is not there."""
        self._ids.add(completion_id)
        self._oldest.append(completion_id)
        if len(self._oldest) > NUM_SEEN:
            self._ids.remove(self._oldest.popleft())


class ScoreDispatcher:
    """Assigns finished completions to workers in order of arrival, each to the worker with most free credits.

    Memory is bounded by what the driver expects: a completion nobody expects is not kept, nor more workers than it has.

    Args:
        lease_s: Silence after which a worker loses what it holds.
        num_unknown_retries: Times that an item whose verdict is unknown is scored again.
        max_workers: Further ones are refused.
    """

    def __init__(
        self, lease_s: float = 10.0, num_unknown_retries: int = 0, max_workers: int = DEFAULT_MAX_WORKERS
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.pending_bytes = 0
        """Memory of finished completions without a verdict."""
        self.num_pending = 0
        """Number of these."""
        self._lease_s = lease_s
        self._num_unknown_retries = num_unknown_retries
        self._max_workers = max_workers
        self._workers: dict[str, _Worker] = {}
        self._names: dict[bytes, str] = {}  # process -> worker id
        self._items: dict[str, _Item] = {}
        self._queue: deque[str] = deque()  # may hold ids that were given up since: skipped on assignment
        self._scored = SeenIds()

    @property
    def workers(self) -> list[str]:
        """Ids of the workers that are there."""
        return list(self._workers)

    def name_of(self, process: bytes) -> str | None:
        """Id of the worker that this process is, where it is one that is there."""
        return self._names.get(process)

    def process_of(self, worker_id: str) -> bytes:
        return self._workers[worker_id].process

    def outstanding(self) -> set[str]:
        """Ids expected and not yet scored."""
        return set(self._items)

    def expect(self, requests: Iterable[GroupRequest]) -> None:
        """Registers the completion ids of these groups: all of them, or none.

        Raises:
            ProtocolError: an id was expected before. A group that is decoded again keeps its place: it is not expected
                again, and the first completion that arrives for an id counts.
        """
        new: dict[str, _Item] = {}
        for request in requests:
            prompt = request.prompt
            task = Task(
                prompt.data_source,
                prompt.ability,
                prompt.ground_truth,
                prompt.question,
                prompt.row,
                prompt.alternatives,
            )
            expected = _Expected(request.group_id, prompt.prompt_id, memoryview(_encoder.encode(task)))
            for index in request.indices:
                completion_id = build_completion_id(request.group_id, index)
                if completion_id in self._items or completion_id in self._scored or completion_id in new:
                    raise ProtocolError(f"completion {completion_id} is expected twice: group ids must be new")
                new[completion_id] = _Item(expected)
        self._items |= new

    def withdraw(self, completion_ids: Iterable[str]) -> None:
        """Strikes off ids that are not decoded now; they may be expected again. ProtocolError for one not awaited."""
        for completion_id in completion_ids:
            item = self._items.get(completion_id)
            if item is None or item.completion is not None:
                raise ProtocolError(f"completion {completion_id} is withdrawn but not awaited")
            del self._items[completion_id]

    def finished(self, completion: PackedCompletion) -> ScoredPacked | None:
        """An engine finished a completion: queue it, once. One that was aborted is handed on as it is."""
        head = completion.head
        completion_id = head.completion_id
        item = self._items.get(completion_id)
        if item is None or item.completion is not None:
            is_known = item is not None or completion_id in self._scored
            self.counters["duplicate_completion" if is_known else "unexpected_completion"] += 1
            return None
        if head.group_id != item.expected.group_id or head.prompt_id != item.expected.prompt_id:
            self.counters["mislabelled_completion"] += 1
            return None
        num_bytes = completion.num_bytes
        if head.finish_reason == "abort":
            del self._items[completion_id]
            return ScoredPacked(completion, num_bytes, Unknown(why="it was aborted, and not scored"), STREAM_ITSELF)
        item.completion = completion
        self.num_pending += 1
        self.pending_bytes += num_bytes
        self._queue.append(completion_id)
        return None

    def ready(self, process: bytes, message: Ready, now: float) -> list[ScoredPacked]:
        """A worker is there; its credits are stated, not added. Renews the leases of what it holds.

        Returns items that are given up, where another process had this id before.
        """
        given_up: list[ScoredPacked] = []
        worker = self._workers.get(message.worker_id)
        if worker is not None and worker.process != process:
            given_up = self.lost(message.worker_id, "it was started again")
            worker = None
        if worker is None:
            # A process has one name, so 20,000 of them need as many connections.
            if len(self._workers) >= self._max_workers or process in self._names:
                self.counters["worker_refused"] += 1
                return given_up
            worker = self._workers[message.worker_id] = _Worker(process, message.credits, now)
            self._names[process] = message.worker_id
        worker.credits, worker.heard_at = message.credits, now
        for completion_id in message.holding:
            if completion_id in worker.leases:
                worker.leases[completion_id] = now + self._lease_s
        return given_up

    def replied(self, worker_id: str, completion_id: str, verdict: Verdict, now: float) -> ScoredPacked | None:
        """The scored completion, or None where the verdict does not count, or the item is to be tried again."""
        worker = self._workers[worker_id]
        worker.heard_at = now
        item = self._items.get(completion_id)
        if item is None or item.completion is None:
            worker.leases.pop(completion_id, None)
            is_known = completion_id in self._scored
            self.counters["duplicate_verdict" if is_known else "unexpected_verdict"] += 1
            return None
        if completion_id not in worker.leases:
            self.counters["verdict_without_lease"] += 1
            return None
        if not is_sound(verdict):
            self.counters["verdict_out_of_range"] += 1
            return None
        del worker.leases[completion_id]
        if isinstance(verdict, Unknown) and item.num_unknown < self._num_unknown_retries:
            item.num_unknown += 1
            self.counters["unknown_retried"] += 1
            self._queue.append(completion_id)
            return None
        return self._score(completion_id, verdict, worker_id)

    def lost(self, worker_id: str, why: str) -> list[ScoredPacked]:
        """Queues what this worker has not answered, ahead of the rest; returns the items that are given up."""
        worker = self._remove(worker_id)
        if worker is None:
            return []
        self.counters["worker_lost"] += 1
        given_up: list[ScoredPacked] = []
        for completion_id in list(worker.leases):
            item = self._items.get(completion_id)
            if item is None:
                continue
            item.num_lost += 1
            if item.num_lost >= MAX_ATTEMPTS:
                self.counters["given_up"] += 1
                verdict = Unknown(why=f"{MAX_ATTEMPTS} reward workers were lost holding it, last {worker_id}: {why}")
                given_up.append(self._score(completion_id, verdict, STREAM_ITSELF))
        self._take_back(worker.leases)
        return given_up

    def give_up(self, why: str) -> list[ScoredPacked]:
        """Every completion that has arrived and has no verdict, as unknown; a verdict that still comes is late."""
        arrived = [completion_id for completion_id, item in self._items.items() if item.completion is not None]
        return [self._score(completion_id, Unknown(why=why), STREAM_ITSELF) for completion_id in arrived]

    def left(self, worker_id: str) -> None:
        """A worker says good-bye: what it has not answered is queued, ahead of the rest, and nobody is blamed."""
        worker = self._remove(worker_id)
        self._take_back(worker.leases if worker else {})

    def lapse(self, now: float) -> None:
        """Takes back what is held past its deadline, and all from workers that are silent for `lease_s`."""
        for worker_id, worker in list(self._workers.items()):
            if worker.heard_at + self._lease_s <= now:
                self.counters["worker_silent"] += 1
                self._remove(worker_id)
                self._take_back(worker.leases)
                continue
            late = [completion_id for completion_id, deadline in worker.leases.items() if deadline <= now]
            for completion_id in late:
                del worker.leases[completion_id]
                self.counters["lease_lapsed"] += 1
            self._take_back(late)

    def assign(self, reachable: Iterable[str], now: float) -> list[tuple[str, Work]]:
        """Leases queued items to workers with free credits: (worker id, work). Ties go to the worker named first.

        `reachable`: workers that something can be sent to.
        """
        free = [
            (len(worker.leases) - worker.credits, worker_id)
            for worker_id in reachable
            if (worker := self._workers.get(worker_id)) is not None
        ]
        heapq.heapify(free)
        assigned: list[tuple[str, Work]] = []
        deadline = now + self._lease_s
        while self._queue and free and free[0][0] < 0:
            completion_id = self._queue.popleft()
            item = self._items.get(completion_id)
            if item is None or item.completion is None:
                continue
            num_free, worker_id = free[0]
            heapq.heapreplace(free, (num_free + 1, worker_id))
            self._workers[worker_id].leases[completion_id] = deadline
            assigned.append((worker_id, Work(completion_id, item.expected.task, item.completion.text)))
        return assigned

    def _remove(self, worker_id: str) -> _Worker | None:
        worker = self._workers.pop(worker_id, None)
        if worker is not None:
            del self._names[worker.process]
        return worker

    def _take_back(self, completion_ids: Iterable[str]) -> None:
        """Queues those of a worker's leases that have no verdict, ahead of the rest, in their order."""
        for completion_id in reversed(list(completion_ids)):
            if completion_id in self._items:
                self.counters["requeued"] += 1
                self._queue.appendleft(completion_id)

    def _score(self, completion_id: str, verdict: Verdict, scored_by: str) -> ScoredPacked:
        completion = self._items.pop(completion_id).completion
        assert completion is not None, f"{completion_id} has not arrived"
        num_bytes = completion.num_bytes
        self.num_pending -= 1
        self.pending_bytes -= num_bytes
        self._scored.add(completion_id)
        return ScoredPacked(completion, num_bytes, verdict, scored_by)


def is_sound(verdict: Verdict) -> bool:
    """Whether its numbers are rewards: finite, from 0 to 1."""
    if isinstance(verdict, Unknown):
        return True
    return 0.0 <= verdict.value <= 1.0 and (verdict.rule_value is None or 0.0 <= verdict.rule_value <= 1.0)
