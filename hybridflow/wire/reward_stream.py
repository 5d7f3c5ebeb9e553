"""The reward stream, as the driver sees it: completions are expected, and come out with their verdicts.

The work is done by a thread of its own (broker_thread.py) on a machine that knows who scores what (broker.py). What is
expected, queued and leased is in this object and not in the sockets: when they fail, they are closed and opened again
at the same addresses. Engines send again what was not accepted, workers say what they hold, and leases bring back the
rest, so each completion is still handed out exactly once.

Memory: completions without a verdict, or scored and not taken by next(), are bounded by `max_pending_bytes` and what
engines have under way; see flow.py. What each socket can lose is in broker_sockets.py.

A failure inside the thread that a restart cannot mend is raised, as RewardError, by the next call of any method.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable

from hybridflow.errors import RewardError
from hybridflow.types import GroupRequest, ScoredCompletion
from hybridflow.wire.broker import Broker
from hybridflow.wire.broker_sockets import BrokerSockets
from hybridflow.wire.broker_thread import BrokerThread
from hybridflow.wire.dispatcher import DEFAULT_MAX_WORKERS, ScoreDispatcher
from hybridflow.wire.endpoint import Endpoint, Listening
from hybridflow.wire.messages import Finished, ScoredPacked

MAX_TAKEN = 32
"""Completions that next() gets with one use of the lock: they are the broker's no longer, and in no bound."""


class RewardStream:
    """Scores finished completions on reward workers while decoding goes on.

        stream = RewardStream()                  # engines connect to stream.endpoint_completions,
                                                 # workers to stream.endpoint_workers
        stream.expect(requests)                  # before the engines are asked
        while stream.outstanding():
            scored = stream.next(timeout_s=1.0)  # in order of arrival; order by id before use
        stream.close()

    All methods may be called from any thread. All raise RewardError after the thread has failed; after close(), those
    that only read the state still answer.

    Args:
        host: Address of this node by which engines and workers reach it; encrypted then. None: they are on this
            machine, and the sockets are in a folder that no other user may enter. See endpoint.py.
        admit: Says whether a finished completion counts, see `rollout.driver.dispatcher`; one that does not is dropped,
            and counted there. Called from the stream's thread. Without it every completion counts.
        lease_s: Silence after which a worker loses what it holds.
        num_unknown_retries: Times that an item whose verdict is unknown is scored again.
        max_pending_bytes: Memory of waiting completions above which engines are held back.
        max_workers: Most workers at a time; further ones are refused.
    """

    def __init__(
        self,
        host: str | None = None,
        admit: Callable[[Finished], bool] = lambda message: True,
        *,
        lease_s: float = 10.0,
        num_unknown_retries: int = 0,
        max_pending_bytes: int = 64 * 2**20,
        max_workers: int = DEFAULT_MAX_WORKERS,
    ) -> None:
        self._changed = threading.Condition()  # guards the broker, and what was reported of it
        self._broker = Broker(admit, ScoreDispatcher(lease_s, num_unknown_retries, max_workers), max_pending_bytes)
        self._taken: deque[ScoredPacked] = deque()
        self._reported: tuple[Counter[str], float] = (Counter(), 0.0)
        self._listening = Listening(host)
        keys = self._listening.keys
        try:
            sockets = BrokerSockets(self._listening.completions, self._listening.workers, keys)
        except BaseException:
            self._listening.close()
            raise
        addresses = sockets.addresses
        self.endpoint_completions, self.endpoint_workers = (
            Endpoint(address, keys.for_clients if keys else None) for address in addresses
        )
        self._thread = BrokerThread(self._broker, self._changed, sockets, lambda: BrokerSockets(*addresses, keys))

    def expect(self, requests: Iterable[GroupRequest]) -> None:
        """Registers the completions of these groups, with what a verifier needs. ProtocolError on an id used before."""
        with self._changed:
            self._check()
            self._broker.dispatcher.expect(requests)

    def next(self, timeout_s: float) -> ScoredCompletion | None:
        """The next scored completion in order of arrival, or None where none came within `timeout_s` seconds."""
        self._check()
        if self._taken:
            try:
                return self._taken.popleft()
            except IndexError:
                pass  # another taker was faster
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._check()
            while not self._broker.has_scored:
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0:
                    return None
                self._changed.wait(remaining_s)
                self._check()
            first, *rest = self._broker.take_scored(MAX_TAKEN)
        self._taken.extend(rest)
        return first

    def outstanding(self) -> set[str]:
        """Ids expected and not yet scored; a scored one may still wait for next()."""
        with self._changed:
            self._check_failure()
            return self._broker.dispatcher.outstanding()

    def withdraw(self, completion_ids: Iterable[str]) -> None:
        """Strikes off ids that will not be decoded now: no longer outstanding, they may be expected again."""
        with self._changed:
            self._check()
            self._broker.dispatcher.withdraw(completion_ids)

    def give_up(self, why: str) -> list[ScoredCompletion]:
        """Every completion that has arrived and has no verdict, as unknown for this reason: nobody waits any longer."""
        with self._changed:
            self._check()
            return list(self._broker.dispatcher.give_up(why))

    def worker_lost(self, worker_id: str) -> None:
        """A worker process died: its unanswered items go to the others. Unknown ids are ignored."""
        with self._changed:
            self._check()
            self._broker.lose(worker_id, "reported dead")

    @property
    def counters(self) -> Counter[str]:
        """Messages dropped and items queued again, by reason, since the start."""
        with self._changed:
            self._check_failure()
            return self._broker.dispatcher.counters.copy()

    @property
    def workers(self) -> list[str]:
        """Ids of the workers that are there: heard of within their lease, and not reported dead."""
        with self._changed:
            self._check_failure()
            return self._broker.dispatcher.workers

    def take_metrics(self) -> dict[str, float]:
        """Since the last call: seconds that engines were held back, most completions that waited for a verdict, and
        each counter that moved."""
        with self._changed:
            self._check_failure()
            counters, held_s = self._broker.dispatcher.counters.copy(), self._broker.flow.held_s(self._broker.clock_s)
            before, held_before = self._reported
            metrics = {
                "time/held_back_s": held_s - held_before,
                "perf/reward_pending_max": float(self._broker.take_max_pending()),
            }
            metrics |= {f"reward/{name}": float(number) for name, number in (counters - before).items()}
            self._reported = (counters, held_s)
            return metrics

    def close(self) -> None:
        """Tells the workers to stop and frees the sockets. What is outstanding is dropped. May be called twice."""
        self._thread.close()
        self._listening.close()

    def _check_failure(self) -> None:
        if self._thread.failure is not None:
            raise RewardError(f"the reward stream has failed: {self._thread.failure!r}") from self._thread.failure

    def _check(self) -> None:
        self._check_failure()
        if self._thread.is_closing:
            raise RewardError("the reward stream is closed")
