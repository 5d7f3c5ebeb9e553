"""Who scores what: the state of the reward stream as a pure machine. Events go in; work to send and results come out.

Life of one completion id:

    expected --finished--> queued --assign--> leased to a worker --verdict--> scored
                              ^                   |    |
                              |'-- worker lost  --'    |     after MAX_ATTEMPTS deaths: scored as Unknown
                              |    or lease lapsed     |
                              '------- unknown --------'     after `num_unknown_retries` of these: scored as Unknown

A lease has a deadline, `lease_s` after the worker last named the item among those that it holds. So a worker that is
dead, stopped or cut off loses its items, and so does one that never got them. Silence is not held against an item: a
worker never runs a verifier itself. The first verdict counts, whoever gave it; each later one is a counted duplicate.

A completion that was aborted is handed on without a verdict, and its id may be expected again: it will be gone on with.
So may one that was withdrawn, which nobody decodes.

What does not fit this life is dropped and counted by reason in `counters`; nothing here raises on a message. Times are
seconds of any clock that does not go back.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from hybridflow.errors import ProtocolError
from hybridflow.types import GroupRequest, Prompt, ScoreRequest, Unknown, Verdict
from hybridflow.wire.messages import Ready, build_completion_id
from hybridflow.wire.packed import PackedCompletion
from hybridflow.wire.past import Fate, Past

MAX_ATTEMPTS = 3
"""Workers lost on one item before it is given up: a text that kills its verifier must not kill them all in turn."""

STREAM_ITSELF = "reward-stream"
"""`scored_by` of an item that was given up."""


@dataclass(frozen=True)
class Result:
    """A completion with the verdict that counts."""

    completion: PackedCompletion
    verdict: Verdict
    scored_by: str


@dataclass
class _Worker:
    process: str
    credits: int
    heard_at: float
    leases: dict[str, float] = field(default_factory=dict)
    """Completion id -> deadline, in order of assignment; len <= credits."""


@dataclass
class _Item:
    """A finished completion without a verdict."""

    completion: PackedCompletion
    prompt: Prompt
    holder: str | None = None
    """Worker that has the lease; None: queued."""
    num_lost: int = 0
    num_unknown: int = 0


class ScoreDispatch:
    """Assigns finished completions to workers in order of arrival, each to the worker with most free credits.

    Memory is bounded by what the driver expects: a completion nobody expects is not kept.

    Args:
        lease_s: Silence after which a worker loses what it holds.
        num_unknown_retries: Times that an item whose verdict is unknown is scored again.
    """

    def __init__(self, lease_s: float = 10.0, num_unknown_retries: int = 0) -> None:
        self.counters: Counter[str] = Counter()
        self.pending_bytes = 0
        """Memory of finished completions without a verdict."""
        self._lease_s = lease_s
        self._num_unknown_retries = num_unknown_retries
        self._workers: dict[str, _Worker] = {}
        self._awaited: dict[str, tuple[str, Prompt]] = {}  # id -> (group id, prompt); expected, not finished
        self._finished: dict[str, _Item] = {}
        self._queue: deque[str] = deque()  # may hold ids that were scored or forgotten since: skipped on assignment
        self._past = Past()

    @property
    def workers(self) -> list[str]:
        """Ids of the workers that are there."""
        return list(self._workers)

    @property
    def num_pending(self) -> int:
        """Finished completions without a verdict."""
        return len(self._finished)

    def outstanding(self) -> set[str]:
        """Ids expected and not yet scored."""
        return self._awaited.keys() | self._finished.keys()

    def expect(self, requests: Iterable[GroupRequest]) -> None:
        """Registers the completion ids of these groups: all of them, or none.

        Raises:
            ProtocolError: an id was expected before. A group that is decoded again keeps its place: it is not expected
                again, and the first completion that arrives for an id counts.
        """
        new: dict[str, tuple[str, Prompt]] = {}
        for request in requests:
            for index in request.indices:
                completion_id = build_completion_id(request.group_id, index)
                known = (self._awaited, self._finished, self._past, new)
                if any(completion_id in ids for ids in known):
                    raise ProtocolError(f"completion {completion_id} is expected twice: group ids must be new")
                new[completion_id] = (request.group_id, request.prompt)
        self._awaited |= new

    def forget(self, completion_ids: Iterable[str]) -> None:
        """Drops ids that are not scored yet; what still arrives for them is counted as late. Others are left alone."""
        for completion_id in completion_ids:
            if completion_id in self._finished:
                self._drop(completion_id, "forgotten")
            elif self._awaited.pop(completion_id, None) is not None:
                self._past.add(completion_id, "forgotten")

    def withdraw(self, completion_ids: Iterable[str]) -> None:
        """These are not decoded now; they may be expected again. ProtocolError for one that is not awaited."""
        for completion_id in completion_ids:
            if self._awaited.pop(completion_id, None) is None:
                raise ProtocolError(f"completion {completion_id} is withdrawn but not awaited")

    def finished(self, completion: PackedCompletion) -> Result | None:
        """An engine finished a completion: queue it, once. One that was aborted is handed on as it is."""
        head = completion.head
        completion_id = head.completion_id
        expected = self._awaited.get(completion_id)
        if expected is None:
            known = completion_id in self._finished
            self.counters["duplicate_completion" if known else self._past.why_no_completion(completion_id)] += 1
            return None
        group_id, prompt = expected
        if (head.group_id, head.prompt_id) != (group_id, prompt.prompt_id):
            self.counters["mislabelled_completion"] += 1
            return None
        del self._awaited[completion_id]
        if head.finish_reason == "abort":
            return Result(completion, Unknown(why="it was aborted, and not scored"), STREAM_ITSELF)
        self._finished[completion_id] = _Item(completion, prompt)
        self.pending_bytes += completion.num_bytes
        self._queue.append(completion_id)
        return None

    def ready(self, message: Ready, now: float) -> list[Result]:
        """A worker is there; its credits are stated, not added. Renews the leases of what it holds.

        Returns items that are given up, where another process had this id before.
        """
        given_up: list[Result] = []
        worker = self._workers.get(message.worker_id)
        if worker is not None and worker.process != message.process:
            given_up = self.lost(message.worker_id, "it was started anew")
            worker = None
        if worker is None:
            worker = self._workers[message.worker_id] = _Worker(message.process, message.credits, now)
        worker.credits, worker.heard_at = message.credits, now
        for completion_id in message.holding:
            if completion_id in worker.leases:
                worker.leases[completion_id] = now + self._lease_s
        return given_up

    def replied(self, worker_id: str, completion_id: str, verdict: Verdict, now: float) -> Result | None:
        """The scored completion, or None where the verdict is late or a duplicate, or the item is to be tried again.

        A verdict counts from whoever gave it, as a worker taken for lost may answer before the one that took over; an
        unknown counts only from the worker that has the lease.
        """
        if worker := self._workers.get(worker_id):
            worker.leases.pop(completion_id, None)
            worker.heard_at = now
        item = self._finished.get(completion_id)
        if item is None:
            self.counters[self._past.why_no_verdict(completion_id)] += 1
            return None
        if isinstance(verdict, Unknown):
            if item.holder != worker_id:
                self.counters["late_verdict"] += 1
                return None
            if item.num_unknown < self._num_unknown_retries:
                item.num_unknown += 1
                self.counters["unknown_retried"] += 1
                item.holder = None
                self._queue.append(completion_id)
                return None
        return self._score(completion_id, verdict, worker_id)

    def lost(self, worker_id: str, why: str) -> list[Result]:
        """Queues what this worker has not answered, ahead of the rest; returns the items that are given up."""
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return []
        self.counters["worker_lost"] += 1
        given_up: list[Result] = []
        for completion_id in list(worker.leases):
            item = self._finished.get(completion_id)
            if item is None or item.holder != worker_id:
                continue
            item.num_lost += 1
            if item.num_lost >= MAX_ATTEMPTS:
                self.counters["given_up"] += 1
                verdict = Unknown(why=f"{MAX_ATTEMPTS} reward workers were lost holding it, last {worker_id}: {why}")
                given_up.append(self._score(completion_id, verdict, STREAM_ITSELF))
        self._take_back(worker_id, worker.leases)
        return given_up

    def left(self, worker_id: str) -> None:
        """A worker says good-bye: what it has not answered is queued, ahead of the rest, and nobody is blamed."""
        worker = self._workers.pop(worker_id, None)
        self._take_back(worker_id, worker.leases if worker else {})

    def lapse(self, now: float) -> None:
        """Takes back what is held past its deadline, and all from workers that are silent for `lease_s`."""
        for worker_id, worker in list(self._workers.items()):
            if worker.heard_at + self._lease_s <= now:
                self.counters["worker_silent"] += 1
                del self._workers[worker_id]
                self._take_back(worker_id, worker.leases)
                continue
            late = [completion_id for completion_id, deadline in worker.leases.items() if deadline <= now]
            for completion_id in late:
                del worker.leases[completion_id]
                self.counters["lease_lapsed"] += 1
            self._take_back(worker_id, late)

    def assign(self, reachable: Iterable[str], now: float) -> list[tuple[str, ScoreRequest]]:
        """Leases queued items to workers with free credits: (worker id, request). Ties go to the worker named first.

        `reachable`: workers that something can be sent to.
        """
        free = {
            worker_id: worker.credits - len(worker.leases)
            for worker_id in reachable
            if (worker := self._workers.get(worker_id)) is not None
        }
        assigned: list[tuple[str, ScoreRequest]] = []
        while self._queue and free:
            worker_id = min(free, key=lambda name: (-free[name], name))
            if free[worker_id] <= 0:
                break
            completion_id = self._queue.popleft()
            item = self._finished.get(completion_id)
            if item is None:
                continue
            item.holder = worker_id
            self._workers[worker_id].leases[completion_id] = now + self._lease_s
            free[worker_id] -= 1
            request = ScoreRequest(
                completion_id=completion_id,
                data_source=item.prompt.data_source,
                ability=item.prompt.ability,
                ground_truth=item.prompt.ground_truth,
                text=item.completion.head.text,
                question=item.prompt.question,
                row=item.prompt.row,
            )
            assigned.append((worker_id, request))
        return assigned

    def _take_back(self, worker_id: str, completion_ids: Iterable[str]) -> None:
        """Queues those of them that this worker still holds, ahead of the rest, in their order."""
        for completion_id in reversed(list(completion_ids)):
            item = self._finished.get(completion_id)
            if item is not None and item.holder == worker_id:
                self.counters["requeued"] += 1
                item.holder = None
                self._queue.appendleft(completion_id)

    def _score(self, completion_id: str, verdict: Verdict, scored_by: str) -> Result:
        return Result(self._drop(completion_id, "scored"), verdict, scored_by)

    def _drop(self, completion_id: str, fate: Fate) -> PackedCompletion:
        completion = self._finished.pop(completion_id).completion
        self.pending_bytes -= completion.num_bytes
        self._past.add(completion_id, fate)
        return completion
