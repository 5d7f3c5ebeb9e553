"""The broker of the reward stream: a thread in the driver process that owns both sockets.

    consumes     finished completions of engines, and messages of reward workers
    waits for    either, at most POLL_MS
    unblocked by a message, or close()
    produces     work for the workers, answers for the engines, and scored completions for next()

What is expected, queued and leased is in this object and not in the sockets: when they fail, or restart() is called,
they are closed and opened again at the same addresses. Engines send again what was not accepted, workers say what they
hold, and leases bring back the rest, so each completion is still handed out exactly once.

Memory: completions without a verdict, or scored and not taken by next(), are bounded by `max_pending_bytes` and what
engines have under way; see flow.py. What each socket can lose is in broker_sockets.py.

A failure inside the thread that a restart cannot mend is raised, as RewardError, by the next call of any method.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress

import zmq

from hybridflow.errors import ProtocolError, RewardError
from hybridflow.types import GroupRequest, ScoredCompletion
from hybridflow.wire.broker_sockets import MAX_FRAMES_PER_TURN, BrokerSockets
from hybridflow.wire.codec import decode_from_engine, decode_from_worker
from hybridflow.wire.dispatch import Result, ScoreDispatch
from hybridflow.wire.endpoint import Endpoint, ServerKeys, is_loopback
from hybridflow.wire.flow import EngineFlow
from hybridflow.wire.messages import Bye, Finished, FromEngine, FromWorker, Hello, Ready, ScoreReply, Stop, Work
from hybridflow.wire.packed import unpack_completion

POLL_MS = 20
"""Longest time until a call of restart() or close() is acted on."""
LAPSE_INTERVAL_S = 0.25
"""Leases are looked at this often."""
LONGEST_TURN_S = 1.0
"""Of a turn that took longer, only so much counts for leases: this process was suspended, and so was its mail."""
MAX_RESTARTS = 5
MAX_TAKEN = 16
"""Scored completions that next() takes from the thread at a time."""
HELD_NOTICE_S = 30.0
"""That engines are held back is said at most this often."""
RESTART_WINDOW_S = 60.0
"""More than MAX_RESTARTS failures of the sockets within this time are a failure of the stream."""

_logger = logging.getLogger(__name__)


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
        host: Address to bind, one that engines and workers can reach: the loopback for one machine, else this node's
            IP, and then encrypted. No wildcard, as the endpoints are handed out as bound.
        admit: Says whether a finished completion counts, see `rollout.leases`; one that does not is dropped, and
            counted there. Called from the stream's thread. Without it every completion counts.
        lease_s: Silence after which a worker loses what it holds.
        num_unknown_retries: Times that an item whose verdict is unknown is scored again.
        max_pending_bytes: Memory of waiting completions above which engines are held back.
        is_encrypted: None: where `host` is beyond the loopback.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        admit: Callable[[Finished], bool] = lambda message: True,
        *,
        lease_s: float = 10.0,
        num_unknown_retries: int = 0,
        max_pending_bytes: int = 64 * 2**20,
        is_encrypted: bool | None = None,
    ) -> None:
        if host in ("*", "0.0.0.0", "::"):
            raise RewardError(
                f"the reward stream cannot bind {host!r}: give the address by which other nodes reach this one"
            )
        self._admit = admit
        self._keys = ServerKeys() if (not is_loopback(host) if is_encrypted is None else is_encrypted) else None
        self._changed = threading.Condition()  # guards every attribute below
        self._state = ScoreDispatch(lease_s, num_unknown_retries)
        self._flow = EngineFlow(max_pending_bytes)
        self._scored: deque[Result] = deque()
        self._scored_bytes = 0
        self._taken: deque[Result] = deque()  # at most MAX_TAKEN, on their way through next()
        self._identities: dict[str, bytes] = {}  # worker id -> ROUTER identity of its present connection
        self._failure: BaseException | None = None
        self._is_closing = False
        self._restart_why: str | None = None
        self._clock_s = 0.0
        self._max_pending = 0
        self._held_said_at: float | None = None
        self._reported: tuple[Counter[str], float] = (Counter(), 0.0)
        sockets = BrokerSockets(f"tcp://{host}:*", f"tcp://{host}:*", self._keys)
        client_keys = self._keys.for_clients if self._keys else None
        self.endpoint_completions, self.endpoint_workers = (
            Endpoint(address, client_keys) for address in sockets.addresses
        )
        self._thread = threading.Thread(target=self._run, args=(sockets,), name="reward-stream", daemon=True)
        self._thread.start()

    def expect(self, requests: Iterable[GroupRequest]) -> None:
        """Registers the completions of these groups, with what a verifier needs. ProtocolError on an id used before."""
        with self._changed:
            self._check()
            self._state.expect(requests)

    def next(self, timeout_s: float) -> ScoredCompletion | None:
        """The next scored completion in order of arrival, or None where none came within `timeout_s` seconds."""
        if (result := self._take(timeout_s)) is None:
            return None
        return ScoredCompletion(
            completion=unpack_completion(result.completion), verdict=result.verdict, scored_by=result.scored_by
        )

    def _take(self, timeout_s: float) -> Result | None:
        self._check()
        with suppress(IndexError):
            return self._taken.popleft()
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._scored:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return None
                self._changed.wait(remaining)
                self._check()
            # Several at a time: the lock is the thread's, too.
            batch = [self._scored.popleft() for _ in range(min(len(self._scored), MAX_TAKEN))]
            self._scored_bytes -= sum(result.completion.num_bytes for result in batch)
        self._taken.extend(batch[1:])
        return batch[0]

    def outstanding(self) -> set[str]:
        """Ids expected and not yet scored; a scored one may still wait for next()."""
        with self._changed:
            self._check_failure()
            return self._state.outstanding()

    def forget(self, completion_ids: Iterable[str]) -> None:
        """Gives up these ids where they are not scored yet; what still arrives for them is dropped as late."""
        with self._changed:
            self._check()
            self._state.forget(completion_ids)

    def withdraw(self, completion_ids: Iterable[str]) -> None:
        """These will not be decoded now: they are outstanding no more, and may be expected again."""
        with self._changed:
            self._check()
            self._state.withdraw(completion_ids)

    def worker_lost(self, worker_id: str) -> None:
        """A worker process died: its unanswered items go to the others. Unknown ids are ignored."""
        with self._changed:
            self._check()
            self._lose(worker_id, "reported dead")

    def restart(self, why: str) -> None:
        """Closes the sockets and opens them again at the same addresses; returns at once. Nothing expected is lost."""
        with self._changed:
            self._check()
            self._restart_why = why

    @property
    def counters(self) -> Counter[str]:
        """Messages dropped and items queued again, by reason, since the start."""
        with self._changed:
            self._check_failure()
            return self._state.counters.copy()

    @property
    def workers(self) -> list[str]:
        """Ids of the workers that are there: heard of within their lease, and not reported dead."""
        with self._changed:
            self._check_failure()
            return self._state.workers

    @property
    def num_workers_ready(self) -> int:
        return len(self.workers)

    def take_metrics(self) -> dict[str, float]:
        """Since the last call: seconds that engines were held back, most completions that waited for a verdict, and
        each counter that moved."""
        with self._changed:
            self._check_failure()
            counters, held_s = self._state.counters.copy(), self._flow.held_s(self._clock_s)
            before, held_before = self._reported
            metrics = {"time/held_back_s": held_s - held_before, "perf/reward_pending_max": float(self._max_pending)}
            metrics |= {f"reward/{name}": float(number) for name, number in (counters - before).items()}
            self._reported = (counters, held_s)
            self._max_pending = self._state.num_pending
            return metrics

    def close(self) -> None:
        """Tells the workers to stop and frees the sockets. What is outstanding is dropped. May be called twice."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join()

    def _check_failure(self) -> None:
        if self._failure is not None:
            raise RewardError(f"the reward stream has failed: {self._failure!r}") from self._failure

    def _check(self) -> None:
        self._check_failure()
        if self._is_closing:
            raise RewardError("the reward stream is closed")

    def _run(self, sockets: BrokerSockets) -> None:
        restarts: deque[float] = deque(maxlen=MAX_RESTARTS)
        try:
            while True:
                why = self._serve_until_broken(sockets)
                if why is None:
                    sockets.stop_workers(self._identities.values(), Stop())
                    return
                now = time.monotonic()
                if len(restarts) == MAX_RESTARTS and now - restarts[0] < RESTART_WINDOW_S:
                    raise RewardError(f"{MAX_RESTARTS} restarts within {RESTART_WINDOW_S:g} s did not help: {why}")
                restarts.append(now)
                _logger.warning("the reward stream opens its sockets anew: %s", why)
                sockets.close(linger_s=0)
                with self._changed:
                    self._state.counters["stream_restarted"] += 1
                    self._identities.clear()
                    self._flow.reconnect()
                sockets = BrokerSockets(self.endpoint_completions.address, self.endpoint_workers.address, self._keys)
        except BaseException as error:
            _logger.exception("the reward stream has failed")
            with self._changed:
                self._failure = error
                self._changed.notify_all()
        finally:
            sockets.close()

    def _serve_until_broken(self, sockets: BrokerSockets) -> str | None:
        """Why the sockets are to be opened anew; None where the stream is closed."""
        try:
            turn_began, lapsed_at = time.monotonic(), self._clock_s
            while not self._is_closing:
                engines, workers = sockets.receive(POLL_MS)
                now = time.monotonic()
                self._clock_s += min(now - turn_began, LONGEST_TURN_S)
                turn_began = now
                from_engines = self._decode(engines, decode_from_engine, "malformed_completion")
                from_workers = self._decode(workers, decode_from_worker, "malformed_worker_message")
                with self._changed:
                    for identity, message in from_engines:
                        self._take_from_engine(identity, message)
                    for identity, message in from_workers:
                        self._take_from_worker(identity, message)
                    # Not before all mail is read: a worker's sign of life may be in it.
                    if self._clock_s - lapsed_at >= LAPSE_INTERVAL_S and len(workers) < MAX_FRAMES_PER_TURN:
                        lapsed_at = self._clock_s
                        self._state.lapse(self._clock_s)
                        self._identities = {name: self._identities[name] for name in self._reachable()}
                    self._send(sockets)
                    if self._restart_why is not None:
                        why, self._restart_why = self._restart_why, None
                        return why
        except zmq.ZMQError as error:
            return repr(error)
        return None

    def _decode(self, received: list[list[bytes]], decode: Callable[[bytes], object], reason: str) -> list:
        messages = []
        for frames in received:
            try:
                identity, frame = frames
                messages.append((identity, decode(frame)))
            except (ProtocolError, ValueError) as error:
                _logger.warning("dropped a message: %s: %s", reason, error)
                with self._changed:
                    self._state.counters[reason] += 1
        return messages

    def _take_from_engine(self, identity: bytes, message: FromEngine) -> None:
        match message:
            case Finished(engine_id, number, packed):
                if self._admit(message):
                    aborted = self._state.finished(packed)
                    self._deliver([aborted] if aborted else [])
                self._flow.accepted(identity, engine_id, number)
            case Hello(engine_id, number):
                self._flow.asked(identity, engine_id, number)

    def _take_from_worker(self, identity: bytes, message: FromWorker) -> None:
        match message:
            case Ready(worker_id):
                self._deliver(self._state.ready(message, self._clock_s))
                self._identities[worker_id] = identity
            case ScoreReply(worker_id, completion_id, verdict):
                scored = self._state.replied(worker_id, completion_id, verdict, self._clock_s)
                self._deliver([scored] if scored else [])
            case Bye(worker_id):
                if self._identities.get(worker_id) == identity:
                    del self._identities[worker_id]
                    self._state.left(worker_id)

    def _send(self, sockets: BrokerSockets) -> None:
        for worker_id, request in self._state.assign(self._reachable(), self._clock_s):
            identity = self._identities.get(worker_id)
            if identity is not None and not sockets.send_to_worker(identity, Work(request)):
                self._lose(worker_id, "its connection is gone")
        self._max_pending = max(self._max_pending, self._state.num_pending)
        waiting = self._state.pending_bytes + self._scored_bytes
        if self._flow.update(waiting, self._clock_s):
            self._say_held(waiting)
        for identity, answer in self._flow.take_answers():
            sockets.send_to_engine(identity, answer)

    def _reachable(self) -> list[str]:
        return [name for name in self._state.workers if name in self._identities]

    def _lose(self, worker_id: str, why: str) -> None:
        self._identities.pop(worker_id, None)
        self._deliver(self._state.lost(worker_id, why))

    def _deliver(self, scored: list[Result]) -> None:
        if scored:
            self._scored.extend(scored)
            self._scored_bytes += sum(result.completion.num_bytes for result in scored)
            self._changed.notify_all()

    def _say_held(self, waiting: int) -> None:
        if not self._flow.is_held:
            return
        self._state.counters["engines_held_back"] += 1
        if self._held_said_at is None or self._clock_s - self._held_said_at >= HELD_NOTICE_S:
            self._held_said_at = self._clock_s
            _logger.warning(
                "rewards lag: engines are held back, as %d completions wait for a verdict and %d for the driver "
                "(%.1f MiB); %d reward workers are there; %.1f s in all so far",
                self._state.num_pending,
                len(self._scored),
                waiting / 2**20,
                len(self._identities),
                self._flow.held_s(self._clock_s),
            )
