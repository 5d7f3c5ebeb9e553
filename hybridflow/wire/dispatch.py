"""Who scores what: the state of the reward stream as a pure machine. Events go in; work to send and results come out.

Life of one completion id:

    expected --finished--> queued --assign--> at a worker --reply--> scored
                              ^                   |
                              '---- worker lost --'   after MAX_ATTEMPTS lost workers: scored as Unknown

What does not fit this life is dropped and counted by reason in `counters`; nothing here raises on a message.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from hybridflow.errors import ProtocolError
from hybridflow.types import Completion, GroupRequest, Prompt, ScoredCompletion, ScoreRequest, Unknown, Verdict
from hybridflow.wire.messages import build_completion_id

MAX_ATTEMPTS = 3
"""Workers lost on one item before it is given up: a text that kills its verifier must not kill them all in turn."""

NUM_REMEMBERED = 100_000
"""Ids already scored or forgotten that are still told apart from ids never expected."""

STREAM_ITSELF = "reward-stream"
"""`scored_by` of an item that was given up."""


class _Worker:
    def __init__(self, credits: int) -> None:
        self.credits = credits
        self.unanswered: dict[str, None] = {}  # ordered set of completion ids; len <= credits


class ScoreDispatch:
    """Assigns finished completions to workers in order of arrival, each to the worker with most free credits.

    Memory is bounded by what the driver expects: a completion nobody expects is not kept.
    """

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self._workers: dict[str, _Worker] = {}
        self._awaited: dict[str, tuple[str, Prompt]] = {}  # id -> (group id, prompt); expected, not finished
        self._finished: dict[str, tuple[Completion, Prompt]] = {}  # finished, not scored
        self._queue: deque[str] = deque()  # may hold ids that were scored or forgotten since: skipped on assignment
        self._num_lost: Counter[str] = Counter()
        self._past: dict[str, str] = {}  # id -> "scored" or "forgotten", oldest first

    @property
    def num_workers(self) -> int:
        return len(self._workers)

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
            for index in range(request.num_completions):
                completion_id = build_completion_id(request.group_id, index)
                known = (self._awaited, self._finished, self._past, new)
                if any(completion_id in ids for ids in known):
                    raise ProtocolError(f"completion {completion_id} is expected twice: group ids must be new")
                new[completion_id] = (request.group_id, request.prompt)
        self._awaited |= new

    def forget(self, completion_ids: Iterable[str]) -> None:
        """Drops ids that are not scored yet; what still arrives for them is counted as late. Others are left alone."""
        for completion_id in completion_ids:
            known = self._awaited.pop(completion_id, None) or self._finished.pop(completion_id, None)
            if known is not None:
                self._remember(completion_id, "forgotten")

    def finished(self, completion: Completion) -> None:
        """An engine finished a completion: queue it, once."""
        completion_id = completion.completion_id
        expected = self._awaited.get(completion_id)
        if expected is None:
            self.counters[self._why_not_awaited(completion_id)] += 1
            return
        group_id, prompt = expected
        if (completion.group_id, completion.prompt_id) != (group_id, prompt.prompt_id):
            self.counters["mislabelled_completion"] += 1
            return
        del self._awaited[completion_id]
        self._finished[completion_id] = (completion, prompt)
        self._queue.append(completion_id)

    def ready(self, worker_id: str, credits: int) -> None:
        """A worker is there; its credits are stated, not added."""
        worker = self._workers.setdefault(worker_id, _Worker(credits))
        worker.credits = credits

    def replied(self, worker_id: str, completion_id: str, verdict: Verdict) -> ScoredCompletion | None:
        """The scored completion, or None where the verdict is late or a duplicate. The first verdict counts, whoever
        gave it: a worker taken for lost may still answer before the one that took over."""
        if worker := self._workers.get(worker_id):
            worker.unanswered.pop(completion_id, None)
        if completion_id not in self._finished:
            self.counters[self._why_no_verdict(completion_id)] += 1
            return None
        return self._score(completion_id, verdict, worker_id)

    def lost(self, worker_id: str, why: str) -> list[ScoredCompletion]:
        """Queues what this worker has not answered, ahead of the rest; returns the items that are given up."""
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return []
        self.counters["worker_lost"] += 1
        given_up: list[ScoredCompletion] = []
        for completion_id in reversed(worker.unanswered):
            if completion_id not in self._finished:
                continue
            self._num_lost[completion_id] += 1
            if self._num_lost[completion_id] >= MAX_ATTEMPTS:
                self.counters["given_up"] += 1
                verdict = Unknown(why=f"{MAX_ATTEMPTS} reward workers were lost holding it, last {worker_id}: {why}")
                given_up.append(self._score(completion_id, verdict, STREAM_ITSELF))
            else:
                self.counters["requeued"] += 1
                self._queue.appendleft(completion_id)
        return given_up

    def assign(self) -> list[tuple[str, ScoreRequest]]:
        """Hands queued items to workers with free credits: (worker id, request). Ties go to the worker named first."""
        assigned: list[tuple[str, ScoreRequest]] = []
        while self._queue and (worker_id := self._freest_worker()) is not None:
            completion_id = self._queue.popleft()
            if completion_id not in self._finished:
                continue
            completion, prompt = self._finished[completion_id]
            self._workers[worker_id].unanswered[completion_id] = None
            request = ScoreRequest(
                completion_id=completion_id,
                data_source=prompt.data_source,
                ability=prompt.ability,
                ground_truth=prompt.ground_truth,
                text=completion.text,
                question=prompt.question,
            )
            assigned.append((worker_id, request))
        return assigned

    def _freest_worker(self) -> str | None:
        free = [(len(worker.unanswered) - worker.credits, name) for name, worker in self._workers.items()]
        least, name = min(free, default=(0, ""))
        return name if least < 0 else None

    def _score(self, completion_id: str, verdict: Verdict, scored_by: str) -> ScoredCompletion:
        completion, _ = self._finished.pop(completion_id)
        self._num_lost.pop(completion_id, None)
        self._remember(completion_id, "scored")
        return ScoredCompletion(completion=completion, verdict=verdict, scored_by=scored_by)

    def _remember(self, completion_id: str, fate: str) -> None:
        self._past[completion_id] = fate
        if len(self._past) > NUM_REMEMBERED:
            del self._past[next(iter(self._past))]

    def _why_not_awaited(self, completion_id: str) -> str:
        if completion_id in self._finished:
            return "duplicate_completion"
        fate = self._past.get(completion_id, "")
        return {"scored": "duplicate_completion", "forgotten": "late_completion"}.get(fate, "unexpected_completion")

    def _why_no_verdict(self, completion_id: str) -> str:
        fate = self._past.get(completion_id, "")
        return {"scored": "duplicate_verdict", "forgotten": "late_verdict"}.get(fate, "unexpected_verdict")
