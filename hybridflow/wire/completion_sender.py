"""The engine's end of the reward stream.

    consumes     completions of send(), and what the stream answers
    waits for    either, at most TICK_S
    unblocked by send(), an answer, or close()
    produces     Finished messages, within the window that the stream grants; those that wait leave together

A completion stays here until the stream has accepted it, and is sent again where a connection broke under it. So only
the death of this process loses completions: those ids stay in the stream's outstanding(). The copies are bounded by
MAX_KEPT and MAX_KEPT_BYTES; above either, send() blocks, and the engine waits for the rewards.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

import zmq

from hybridflow.errors import RewardError
from hybridflow.types import Completion
from hybridflow.wire.codec import MAX_FRAME_BYTES, decode_to_engine, encode
from hybridflow.wire.endpoint import Endpoint
from hybridflow.wire.frames import IN, OUT, receive_parts, send_frames
from hybridflow.wire.messages import Accepted, Finished, Hello, Packer

MAX_KEPT = 128
MAX_KEPT_BYTES = 16 * 2**20
"""Completions, and bytes of them, that are not accepted before send() blocks; one is always taken, however large."""
TICK_S = 0.5
"""While anything is not accepted, the stream is asked this often."""
LOUD_AFTER_S = 30.0
"""A send() that is held back longer says so, and again each time as much has passed."""

_logger = logging.getLogger(__name__)


class CompletionSender:
    """Sends finished completions of one engine to the driver, in order. `send` may be called from any thread.

    Args:
        endpoint: `RewardStream.endpoint_completions`.
        engine_id: Name of the engine, for messages.
        send_timeout_s: Longest silence of the stream that `send` bears. A stream that holds engines back is not silent.
        flush_timeout_s: Longest time that `close` waits until everything sent is accepted.
    """

    def __init__(
        self, endpoint: Endpoint, engine_id: str, *, send_timeout_s: float = 60.0, flush_timeout_s: float = 10.0
    ) -> None:
        self._endpoint = endpoint
        self._engine_id = engine_id
        self._send_timeout_s = send_timeout_s
        self._flush_timeout_s = flush_timeout_s
        self._changed = threading.Condition()  # guards every attribute below
        self._packer = Packer()
        self._encoded = bytearray()  # the same memory each time
        self._kept: dict[int, zmq.Frame] = {}  # not accepted yet; what ZeroMQ sends refers to it
        self._kept_bytes = 0
        self._unsent: deque[int] = deque()
        self._sent_after: dict[int, int] = {}  # number -> Hellos sent before it
        self._last_number = 0
        self._num_hellos = 0
        self._window = 0
        self._heard_at: float | None = None
        self._waits_since: float | None = None  # since when something has been kept without a sign of the stream
        self._held_s = 0.0
        self._held_since: float | None = None
        self._failure: BaseException | None = None
        self._is_closing = False
        self._is_waiting = False  # the thread, for something to send or to ask for
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=f"send-{engine_id}", daemon=True)
        self._thread.start()

    def send(self, completion: Completion, attempt: int = 0) -> None:
        """Hands one completion over, with the attempt of the lease under which it was decoded.

        Blocks while the stream holds engines back or has not answered yet.

        Raises:
            ProtocolError: the completion contradicts itself or is too large.
            RewardError: nothing was heard of the stream for `send_timeout_s`, or this sender is closed.
        """
        with self._changed:
            self._check(completion.completion_id)
            packed = self._packer.pack(completion)
            self._last_number += 1
            message = Finished(self._engine_id, self._last_number, packed, attempt)
            self._keep(self._last_number, zmq.Frame(encode(message, self._encoded), copy=True))
            if self._heard_at is None:
                self._wait_for(lambda: self._heard_at is not None, completion.completion_id)
            if self._is_full():
                self._held_since = time.monotonic()
                try:
                    self._wait_for(lambda: not self._is_full(), completion.completion_id)
                finally:
                    self._held_s += time.monotonic() - self._held_since
                    self._held_since = None

    @property
    def held_s(self) -> float:
        """Seconds that send() was held back, since the start; grows while it is."""
        with self._changed:
            return self._held_s + (time.monotonic() - self._held_since if self._held_since is not None else 0.0)

    def close(self) -> None:
        """Waits for acceptance for at most `flush_timeout_s`, then drops what is left. May be called twice."""
        deadline = time.monotonic() + self._flush_timeout_s
        with self._changed:
            while self._kept and self._failure is None and not self._is_closing and time.monotonic() < deadline:
                self._changed.wait(deadline - time.monotonic())
            if self._kept and not self._is_closing:
                _logger.warning(
                    "engine %s drops %d completions that %s did not accept within %g s",
                    *(self._engine_id, len(self._kept), self._endpoint, self._flush_timeout_s),
                )
            was_closing, self._is_closing = self._is_closing, True
            self._changed.notify_all()
        if not was_closing:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            os.close(self._wake)

    def __enter__(self) -> CompletionSender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _keep(self, number: int, frame: zmq.Frame) -> None:
        if not self._kept:
            self._waits_since = time.monotonic()
        self._kept[number] = frame
        self._kept_bytes += len(frame)
        self._unsent.append(number)
        if self._is_waiting and (self._may_send() or len(self._kept) == 1):
            self._is_waiting = False
            os.eventfd_write(self._wake, 1)

    def _is_full(self) -> bool:
        return len(self._kept) > 1 and (len(self._kept) >= MAX_KEPT or self._kept_bytes >= MAX_KEPT_BYTES)

    def _wait_for(self, is_true: Callable[[], bool], completion_id: str) -> None:
        loud_at = time.monotonic() + LOUD_AFTER_S
        while not is_true():
            self._check(completion_id)
            self._changed.wait(min(TICK_S, self._send_timeout_s))
            if time.monotonic() > loud_at and not is_true():
                loud_at += LOUD_AFTER_S
                why = "it has not answered yet" if self._heard_at is None else "rewards lag"
                _logger.warning(
                    "engine %s waits for the reward stream at %s: %d completions are not accepted: %s",
                    *(self._engine_id, self._endpoint, len(self._kept), why),
                )

    def _check(self, completion_id: str) -> None:
        if self._failure is not None:
            raise RewardError(f"engine {self._engine_id} cannot send: {self._failure!r}") from self._failure
        if self._is_closing:
            raise RewardError(f"engine {self._engine_id} could not send {completion_id}: its sender is closed")
        if self._waits_since is not None and time.monotonic() - self._waits_since > self._send_timeout_s:
            raise RewardError(
                f"engine {self._engine_id} could not send {completion_id} to {self._endpoint}: nothing was heard of it "
                f"for {self._send_timeout_s} s: is the driver alive and reachable from this node?"
            )

    def _run(self) -> None:
        context = zmq.Context()
        try:
            socket = context.socket(zmq.DEALER)
            socket.set(zmq.IMMEDIATE, 1)  # nothing is queued for a connection that is not there
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
            socket.set(zmq.RECONNECT_IVL, 50)
            socket.set(zmq.RECONNECT_IVL_MAX, 1000)
            self._endpoint.connect(socket)
            self._exchange(socket)
        except BaseException as error:
            _logger.exception("the sender of engine %s has failed", self._engine_id)
            with self._changed:
                self._failure = error
                self._changed.notify_all()
        finally:
            context.destroy(linger=0)

    def _exchange(self, socket: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(self._wake, zmq.POLLIN)
        asked_at = 0.0
        while True:
            with self._changed:
                if self._is_closing:
                    return
                asks = bool(self._kept) and time.monotonic() - asked_at >= TICK_S
                self._is_waiting = not self._may_send()
                wants_out = asks or not self._is_waiting
            poller.register(socket, IN | OUT if wants_out else IN)
            ready = dict(poller.poll(int(TICK_S * 1000)))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if socket in ready:
                self._receive(socket)
            self._send_unsent(socket)
            with self._changed:
                asks = bool(self._kept) and time.monotonic() - asked_at >= TICK_S
            if asks and self._ask(socket):
                asked_at = time.monotonic()

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        with suppress(zmq.Again):
            while True:
                for frame in receive_parts(socket):
                    for message in decode_to_engine(frame):
                        self._take(message)

    def _may_send(self) -> bool:
        return bool(self._unsent) and len(self._sent_after) < self._window

    def _send_unsent(self, socket: zmq.Socket[bytes]) -> None:
        while batch := self._next_batch():
            try:
                send_frames(socket, list(batch.values()))
            except zmq.Again:
                with self._changed:
                    self._unsent.extendleft(reversed(batch))
                return
            with self._changed:
                self._sent_after |= dict.fromkeys(batch, self._num_hellos)

    def _next_batch(self) -> dict[int, zmq.Frame]:
        """Takes from the unsent what to send together, by number: the first, as many as the window lets through."""
        batch: dict[int, zmq.Frame] = {}
        with self._changed:
            room = self._window - len(self._sent_after)
            while self._unsent and len(batch) < room:
                number = self._unsent.popleft()
                if (frame := self._kept.get(number)) is not None:  # None: accepted after all, before it was sent again
                    batch[number] = frame
        return batch

    def _ask(self, socket: zmq.Socket[bytes]) -> bool:
        try:
            socket.send(encode(Hello(self._engine_id, self._num_hellos + 1)), zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._num_hellos += 1
        return True

    def _take(self, message: Accepted) -> None:
        with self._changed:
            self._heard_at = time.monotonic()
            self._window = message.window
            for number in message.numbers:
                if (frame := self._kept.pop(number, None)) is not None:
                    self._kept_bytes -= len(frame)
                self._sent_after.pop(number, None)
            lost = [number for number, hellos in self._sent_after.items() if hellos < message.hello]
            for number in lost:
                del self._sent_after[number]
            if lost:
                _logger.warning("engine %s sends %d completions again: a connection broke", self._engine_id, len(lost))
                self._unsent = deque(sorted([*lost, *self._unsent]))
            self._waits_since = self._heard_at if self._kept else None
            self._changed.notify_all()
