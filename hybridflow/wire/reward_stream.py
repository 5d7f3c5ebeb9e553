"""The broker of the reward stream: a thread in the driver process that owns both sockets.

    consumes     finished completions (PULL) and messages of reward workers (ROUTER)
    waits for    either, at most POLL_MS
    unblocked by a message, or close()
    produces     work for the workers, and scored completions for next()

What each socket can lose, and which bound makes that safe:

    PULL    nothing of its own: a sender blocks at the high-water mark instead of dropping. Completions that sit in the
            buffers of an engine that dies are gone; their leases go to another engine.
    ROUTER  drops what is sent to a peer it does not know or whose queue is full. ROUTER_MANDATORY turns both into
            errors: an unknown peer is a lost worker, whose items are queued again; a full queue cannot be, as a worker
            holds at most MAX_CREDITS unanswered items and the mark is four times that (ZeroMQ frees the slots of read
            messages in batches of up to half the mark). Verdicts that die with a worker are given again by another.

A failure inside the thread is raised, as RewardError, by the next call of any method.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable

import zmq

from hybridflow.errors import ProtocolError, RewardError
from hybridflow.types import GroupRequest, ScoredCompletion
from hybridflow.wire.binding import bind
from hybridflow.wire.codec import MAX_FRAME_BYTES, decode_from_engine, decode_from_worker, encode
from hybridflow.wire.dispatch import ScoreDispatch
from hybridflow.wire.messages import MAX_CREDITS, Bye, Finished, FromWorker, Message, Ready, ScoreReply, Stop, Work

POLL_MS = 20
"""Longest time until a call of worker_lost() or close() is acted on."""
MAX_FRAMES_PER_TURN = 256
"""Frames taken from one socket before the other gets its turn."""
STOP_LINGER_S = 1.0
"""Time that close() gives the Stop messages to leave."""

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
            IP. No wildcard, as the endpoints are handed out as bound.
        admit: Says whether a finished completion counts, see `rollout.leases`; one that does not is dropped, and
            counted there. Called from the stream's thread. Without it every completion counts.
    """

    def __init__(self, host: str = "127.0.0.1", admit: Callable[[Finished], bool] = lambda message: True) -> None:
        self._admit = admit
        self._state = ScoreDispatch()
        self._changed = threading.Condition()  # guards every attribute below and the state
        self._scored: deque[ScoredCompletion] = deque()
        self._identities: dict[str, bytes] = {}  # worker id -> ROUTER identity of its present connection
        self._failure: BaseException | None = None
        self._is_closing = False
        self._context = zmq.Context()
        self._completions = self._context.socket(zmq.PULL)
        self._workers = self._context.socket(zmq.ROUTER)
        self._workers.set(zmq.ROUTER_MANDATORY, 1)
        self._workers.set(zmq.SNDHWM, 4 * MAX_CREDITS)
        for socket in (self._completions, self._workers):
            socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
            socket.set(zmq.LINGER, int(STOP_LINGER_S * 1000))
        try:
            self.endpoint_completions = bind(self._completions, host)
            self.endpoint_workers = bind(self._workers, host)
        except RewardError:
            self._context.destroy(linger=0)
            raise
        self._thread = threading.Thread(target=self._run, name="reward-stream", daemon=True)
        self._thread.start()

    def expect(self, requests: Iterable[GroupRequest]) -> None:
        """Registers the completions of these groups, with what a verifier needs. ProtocolError on an id used before."""
        with self._changed:
            self._check()
            self._state.expect(requests)

    def next(self, timeout_s: float) -> ScoredCompletion | None:
        """The next scored completion in order of arrival, or None where none came within `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                self._check()
                if self._scored:
                    return self._scored.popleft()
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return None
                self._changed.wait(remaining)

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

    def worker_lost(self, worker_id: str) -> None:
        """A worker process died: its unanswered items go to the others. Unknown ids are ignored."""
        with self._changed:
            self._check()
            self._lose(worker_id, "reported dead")

    @property
    def counters(self) -> Counter[str]:
        """Messages dropped and items queued again, by reason, since the start."""
        with self._changed:
            self._check_failure()
            return self._state.counters.copy()

    @property
    def num_workers_ready(self) -> int:
        with self._changed:
            self._check_failure()
            return self._state.num_workers

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

    def _run(self) -> None:
        try:
            poller = zmq.Poller()
            poller.register(self._completions, zmq.POLLIN)
            poller.register(self._workers, zmq.POLLIN)
            while not self._is_closing:
                ready = dict(poller.poll(POLL_MS))
                if self._completions in ready:
                    self._drain(self._completions, self._take_completion)
                if self._workers in ready:
                    self._drain(self._workers, self._take_from_worker)
                self._send_work()
            for identity in self._identities.values():
                self._send(identity, Stop())
        except BaseException as error:
            _logger.exception("the reward stream has failed")
            with self._changed:
                self._failure = error
                self._changed.notify_all()
        finally:
            self._context.destroy(linger=int(STOP_LINGER_S * 1000))

    def _drain(self, socket: zmq.Socket[bytes], take: Callable[[list[bytes]], None]) -> None:
        for _ in range(MAX_FRAMES_PER_TURN):
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            take(frames)

    def _take_completion(self, frames: list[bytes]) -> None:
        try:
            (frame,) = frames
            message = decode_from_engine(frame)
        except (ProtocolError, ValueError) as error:
            self._refuse("malformed_completion", error)
            return
        if not self._admit(message):
            return
        with self._changed:
            self._state.finished(message.completion)

    def _take_from_worker(self, frames: list[bytes]) -> None:
        try:
            identity, frame = frames
            message = decode_from_worker(frame)
        except (ProtocolError, ValueError) as error:
            self._refuse("malformed_worker_message", error)
            return
        with self._changed:
            self._apply(identity, message)

    def _apply(self, identity: bytes, message: FromWorker) -> None:
        match message:
            case Ready(worker_id, credits):
                if self._identities.get(worker_id, identity) != identity:
                    self._lose(worker_id, "it came back on a new connection")
                self._identities[worker_id] = identity
                self._state.ready(worker_id, credits)
            case ScoreReply(worker_id, completion_id, verdict):
                scored = self._state.replied(worker_id, completion_id, verdict)
                self._deliver([scored] if scored else [])
            case Bye(worker_id):
                if self._identities.get(worker_id) == identity:
                    self._lose(worker_id, "it left")

    def _send_work(self) -> None:
        with self._changed:
            for worker_id, request in self._state.assign():
                identity = self._identities.get(worker_id)
                if identity is not None and not self._send(identity, Work(request)):
                    self._lose(worker_id, "its connection is gone")

    def _send(self, identity: bytes, message: Message) -> bool:
        """False where that worker's connection is gone. Never blocks, see the module docstring."""
        try:
            self._workers.send_multipart([identity, encode(message)], zmq.NOBLOCK)
        except zmq.Again as error:
            raise ProtocolError("a reward worker's queue is full although its credits bound it") from error
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def _lose(self, worker_id: str, why: str) -> None:
        self._identities.pop(worker_id, None)
        self._deliver(self._state.lost(worker_id, why))

    def _deliver(self, scored: list[ScoredCompletion]) -> None:
        self._scored.extend(scored)
        self._changed.notify_all()

    def _refuse(self, reason: str, error: Exception) -> None:
        _logger.warning("dropped a message: %s: %s", reason, error)
        with self._changed:
            self._state.counters[reason] += 1
