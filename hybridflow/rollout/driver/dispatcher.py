"""Dispatcher of a step's groups: which engine decodes what, and which completions are still to come.

Life of one group:

    queued --assign--> leased to an engine, attempt a --every completion admitted--> done
       ^                          |
       '------ engine lost -------'   only the completions that have not arrived; attempt a + 1

All completions of a group go to one engine, so that a long prompt is prefilled and held once. A completion counts if it
carries the present attempt of its group; any other is dropped and counted by reason in `counters`. So whatever engines
do, each completion id is admitted once.

A completion that its engine aborts by itself (SGLang, with top-p: too many tokens tied at the cut) is counted, and
leased again, with another seed, once the rest of its group is there; at most `MAX_ABORTS` times.

A step that has what it needs is stopped: what is queued is given up (`drop_queued`), what engines hold comes back as
aborted. A group that ended so may be asked for again; its attempts are counted on.

No I/O: events go in, leases to hand out come out. The thread that receives completions calls `admit`, the driver's main
thread all else.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from hybridflow.errors import ProtocolError, RolloutError
from hybridflow.rollout.driver.budget import LengthEstimate, TokenBudget
from hybridflow.types import GroupRequest, Lease, RolloutReport
from hybridflow.wire.messages import Finished, PackedCompletion, build_completion_id

MAX_ATTEMPTS = 3
"""Engines lost on one group before it is given up: a prompt that kills its engine must not kill them all in turn."""
MAX_ABORTS = 3
"""Times that one completion is decoded again after its engine aborted it, before the run ends."""
NUM_SEEN = 100_000
"""Group ids that are remembered when they are done, so that a completion of one is late and not unexpected."""
P = ParamSpec("P")
T = TypeVar("T")


class _Group:
    def __init__(self, request: GroupRequest, attempt: int) -> None:
        self.request = request
        self.remaining = set(request.indices)
        self.attempt = attempt
        self.engine: str | None = None
        self.num_lost = 0
        self.is_unfinished = False
        """Some of it was aborted or given up: it may be asked for again."""
        self.num_aborts: Counter[int] = Counter()
        """By index: how often the engine aborted it by itself."""
        self.aborted: set[int] = set()
        """Aborted in the present lease: they wait for the rest."""
        self._partial_tokens = {partial.index: len(partial.tokens) for partial in request.partials}

    def cost(self, expected: int) -> int:
        """Tokens: the prompt, and each completion that has not arrived, what it begins with included."""
        to_come = sum(max(expected, self._partial_tokens.get(index, 0)) for index in self.remaining)
        return len(self.request.prompt.token_ids) + to_come


def _locked(method: Callable[Concatenate[Dispatcher, P], T]) -> Callable[Concatenate[Dispatcher, P], T]:
    @wraps(method)
    def under_lock(self: Dispatcher, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.lock:
            return method(self, *args, **kwargs)

    return under_lock


class Dispatcher:
    """Leases groups longest first, each to the engine that holds fewest tokens, within every engine's budget.

    The cost of a group is its prompt, held once, plus the expected length of each completion that has not arrived. The
    same events in the same order give the same leases.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.counters: Counter[str] = Counter()
        """Events by name since the last report."""
        self._groups: dict[str, _Group] = {}  # not done
        self._queue: deque[str] = deque()
        self._budgets: dict[str, TokenBudget] = {}  # of engines that may get leases
        self._seen: dict[str, int | None] = {}  # done: id -> attempts of one that may be asked for again; oldest first
        self._length = LengthEstimate(1)
        self._totals = _no_totals()
        self._dropped: list[str] = []
        self._is_stopping = False
        self._failure: RolloutError | None = None

    # -------------------------------------------------------------------------------------------------- questions

    @_locked
    def num_left(self) -> tuple[int, int]:
        """(completions to come, groups that no engine holds)."""
        return sum(len(group.remaining) for group in self._groups.values()), len(self._queue)

    @_locked
    def in_flight(self, engines: Iterable[str]) -> dict[str, int]:
        """Completions that each of these engines owes."""
        return {name: sum(len(group.remaining) for group in self._held_by(name)) for name in engines}

    @_locked
    def tokens_in_flight(self, engine: str) -> int:
        """Expected size of what this engine holds."""
        return sum(group.cost(self._length.expected) for group in self._held_by(engine))

    @_locked
    def report(self, take_events: Callable[[], Counter[str]]) -> RolloutReport | None:
        """Totals and events since the report before, what happened between steps included; None while any is to come.

        `take_events` gives what else happened, and is called only then.
        """
        if self.num_left()[0]:
            return None
        events, self.counters = take_events() + self.counters, Counter()
        return RolloutReport(**self._totals, events={name: number for name, number in sorted(events.items()) if number})

    # ----------------------------------------------------------------------------------------------------- events

    @_locked
    def add(self, requests: Iterable[GroupRequest], max_new_tokens: int) -> None:
        """Queues the groups of a step: those begun in an earlier one first, then longest first, then as given.

        Totals begin at zero, and lengths are learnt from these groups alone, so that what is leased when follows from
        the requests and a resumed run leases as the first one did. ProtocolError for a group asked for before, unless
        it was stopped before it was done.
        """
        requests = list(requests)
        self._refuse_known(requests)
        self._is_stopping = False
        self._totals = _no_totals()
        self._length = LengthEstimate(max_new_tokens)
        self._queue_new(requests)

    @_locked
    def extend(self, requests: Iterable[GroupRequest]) -> None:
        """Queues further groups of a step, in the same order, and goes on counting and learning. Errors as in `add`."""
        requests = list(requests)
        self._refuse_known(requests)
        self._queue_new(requests)

    def _refuse_known(self, requests: Iterable[GroupRequest]) -> None:
        for request in requests:
            if request.group_id in self._groups or self._seen.get(request.group_id, 0) is None:
                raise ProtocolError(f"group {request.group_id} is asked for twice: group ids must be new")

    def _queue_new(self, requests: Iterable[GroupRequest]) -> None:
        self._groups |= {
            request.group_id: _Group(request, self._seen.pop(request.group_id, None) or 0) for request in requests
        }
        waiting = [*self._queue, *(request.group_id for request in requests)]
        self._queue = deque(sorted(waiting, key=self._place))

    @_locked
    def engine_up(self, engine: str, capacity_tokens: int) -> None:
        """The engine may get leases. Its budget starts at its KV pool; what was learnt before is dropped."""
        self._budgets[engine] = TokenBudget(capacity_tokens)

    @_locked
    def engine_down(self, engine: str) -> list[str]:
        """No more leases for this engine; what it has not delivered is queued again, ahead of the rest.

        Returns the ids of these groups. RolloutError for one that has been lost `MAX_ATTEMPTS` times.
        """
        self._budgets.pop(engine, None)
        lost = [group.request.group_id for group in self._held_by(engine)]
        for group_id in reversed(lost):
            self._queue_again(self._groups[group_id])
        self.counters["lost_lease"] += len(lost)
        for group_id in lost:
            self._groups[group_id].num_lost += 1
            if self._groups[group_id].num_lost >= MAX_ATTEMPTS:
                raise RolloutError(
                    f"group {group_id} (prompt {self._groups[group_id].request.prompt.prompt_id}) was lost with its "
                    f"engine {MAX_ATTEMPTS} times: this prompt may be what ends them. See logs/engine-*.log"
                )
        return lost

    @_locked
    def assign(self) -> dict[str, list[Lease]]:
        """Leases for each engine, in the order in which it should decode them.

        The longest group waits for room rather than being overtaken; an engine that holds nothing takes any group.
        Raises RolloutError for a completion that was aborted too often.
        """
        if self._failure is not None:
            raise self._failure
        leases: dict[str, list[Lease]] = {}
        while self._queue and self._budgets:
            group = self._groups[self._queue[0]]
            held = {name: self.tokens_in_flight(name) for name in self._budgets}
            cost = group.cost(self._length.expected)
            open_to_it = [name for name in held if not held[name] or held[name] + cost <= self._budgets[name].limit]
            if not open_to_it:
                break
            engine = min(open_to_it, key=lambda name: (held[name], name))
            self._queue.popleft()
            group.attempt += 1
            group.engine = engine
            indices = sorted(group.remaining)
            aborts = {index: group.num_aborts[index] for index in indices if group.num_aborts[index]}
            lease = Lease(request=group.request, attempt=group.attempt, indices=indices, num_aborts=aborts)
            leases.setdefault(engine, []).append(lease)
        return leases

    @_locked
    def admit(self, message: Finished) -> bool:
        """Whether this completion counts: it is of the present lease of its group, and the first for its id."""
        completion = message.packed.head
        group = self._groups.get(completion.group_id)
        if group is None or group.engine is None or message.attempt != group.attempt:
            known = group is not None or completion.group_id in self._seen
            self.counters["late_completion" if known else "unexpected_completion"] += 1
            return False
        if completion.index not in group.remaining - group.aborted:
            self.counters["duplicate_completion"] += 1
            return False
        is_aborted = completion.finish_reason == "abort"
        if is_aborted and not self._is_stopping:
            self._note_abort(group, completion.index)
            return False
        group.remaining.discard(completion.index)
        if is_aborted:
            group.is_unfinished = True
        else:
            self._length.observe(message.packed.num_tokens)
        if budget := self._budgets.get(group.engine):
            budget.finished(completion.num_retractions)
        if not group.remaining:
            self._finish(completion.group_id)
        elif group.remaining == group.aborted:
            self._queue_again(group)
        self._add_up(message.packed)
        return True

    @_locked
    def drop_queued(self) -> None:
        """The step is stopped: gives up what no engine holds, also of groups that an engine was lost on, and what
        engines aborted before."""
        self._is_stopping = True
        held = [group_id for group_id, group in self._groups.items() if group.engine is not None]
        for group_id in [*self._queue, *held]:
            group = self._groups[group_id]
            given_up = group.remaining if group.engine is None else group.aborted
            if not given_up:
                continue
            self._dropped += [build_completion_id(group_id, index) for index in sorted(given_up)]
            group.is_unfinished = True
            group.remaining, group.aborted = group.remaining - given_up, set()
            if not group.remaining:
                self._finish(group_id)
        self._queue.clear()

    @_locked
    def take_dropped(self) -> list[str]:
        """Ids of completions given up since the last call."""
        dropped, self._dropped = self._dropped, []
        return dropped

    # ----------------------------------------------------------------------------------------------------- inside

    def _add_up(self, packed: PackedCompletion) -> None:
        completion = packed.head
        self._totals["num_completions"] += 1
        self._totals["prompt_tokens"] += completion.prompt_tokens
        self._totals["cached_tokens"] += completion.cached_tokens
        self._totals["response_tokens"] += packed.num_tokens - completion.resumed_tokens
        self._totals["num_retractions"] += completion.num_retractions
        self._totals["resumed_tokens"] += completion.resumed_tokens

    def _note_abort(self, group: _Group, index: int) -> None:
        self.counters["aborted_completion"] += 1
        group.num_aborts[index] += 1
        group.aborted.add(index)
        if group.num_aborts[index] > MAX_ABORTS:
            self._failure = RolloutError(
                f"completion {build_completion_id(group.request.group_id, index)} (prompt "
                f"{group.request.prompt.prompt_id}) was aborted by its engine {MAX_ABORTS + 1} times; see "
                f"logs/engine-*.log. With rollout.top_p below 1 it may be ties among tokens: set rollout.top_p = 1"
            )
        if group.remaining == group.aborted:
            self._queue_again(group)

    def _queue_again(self, group: _Group) -> None:
        """Queue what is left of a group again, ahead of the rest."""
        group.engine = None
        group.aborted = set()
        self._queue.appendleft(group.request.group_id)

    def _place(self, group_id: str) -> tuple[bool, int]:
        """Sort key: the group that is to be leased sooner comes first."""
        group = self._groups[group_id]
        is_begun = bool(group.request.partials or group.request.done)
        return not is_begun, -group.cost(self._length.expected)

    def _held_by(self, engine: str) -> list[_Group]:
        return [group for group in self._groups.values() if group.engine == engine]

    def _finish(self, group_id: str) -> None:
        group = self._groups.pop(group_id)
        self._seen[group_id] = group.attempt if group.is_unfinished else None
        if len(self._seen) > NUM_SEEN:
            del self._seen[next(iter(self._seen))]


def _no_totals() -> dict[str, int]:
    """Sums over admitted completions, as in `RolloutReport`."""
    inputs = ("num_completions", "prompt_tokens", "cached_tokens", "resumed_tokens")
    return dict.fromkeys([*inputs, "response_tokens", "num_retractions"], 0)
