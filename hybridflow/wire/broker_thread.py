"""The thread that drives the broker: it owns both sockets, and nobody else touches them.

    consumes     finished completions of engines, and messages of reward workers
    waits for    either, at most POLL_MS
    unblocked by a message, or close()
    produces     work for the workers, answers for the engines, and scored completions for next()

A turn takes all mail that is there and answers it with one frame per receiver. When the sockets fail, they are closed
and opened again at the same addresses.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import zmq

from hybridflow.errors import ProtocolError, RewardError
from hybridflow.wire.broker import Broker
from hybridflow.wire.broker_sockets import MAX_FRAMES_PER_TURN, BrokerSockets
from hybridflow.wire.codec import decode_from_engine, decode_from_worker
from hybridflow.wire.frames import Received

POLL_MS = 20
"""Longest time until a call of close() is acted on."""
LAPSE_INTERVAL_S = 0.25
"""Leases are looked at this often."""
LONGEST_TURN_S = 1.0
"""Longest time of a turn that counts for leases: this process was suspended, and so was its mail."""
MAX_RESTARTS = 5
RESTART_WINDOW_S = 60.0
"""More than MAX_RESTARTS failures of the sockets within this time are a failure of the stream."""

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class BrokerThread:
    """Runs from construction to `close`.

    Args:
        broker: Used with `changed` held.
        changed: Guards the broker; notified with scored completions, and when the thread has failed.
        sockets: Of the first incarnation.
        open_sockets: Opens those of each further one.
    """

    def __init__(
        self,
        broker: Broker,
        changed: threading.Condition,
        sockets: BrokerSockets,
        open_sockets: Callable[[], BrokerSockets],
    ) -> None:
        self.failure: BaseException | None = None
        self.is_closing = False
        self._broker = broker
        self._changed = changed
        self._open_sockets = open_sockets
        self._thread = threading.Thread(target=self._run, args=(sockets,), name="reward-stream", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Tells the workers to stop and frees the sockets. May be called twice, without `changed`."""
        with self._changed:
            self.is_closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self, sockets: BrokerSockets) -> None:
        restarts: deque[float] = deque(maxlen=MAX_RESTARTS)
        try:
            while True:
                why = self._serve_until_broken(sockets)
                if why is None:
                    sockets.stop_workers(self._broker.connected)
                    return
                now = time.monotonic()
                if len(restarts) == MAX_RESTARTS and now - restarts[0] < RESTART_WINDOW_S:
                    raise RewardError(f"{MAX_RESTARTS} restarts within {RESTART_WINDOW_S:g} s did not help: {why}")
                restarts.append(now)
                _logger.warning("the reward stream opens its sockets again: %s", why)
                sockets.close(linger_s=0)
                with self._changed:
                    self._broker.reconnect()
                sockets = self._open_sockets()
        except BaseException as error:
            _logger.exception("the reward stream has failed")
            with self._changed:
                self.failure = error
                self._changed.notify_all()
        finally:
            sockets.close()

    def _serve_until_broken(self, sockets: BrokerSockets) -> str | None:
        """Why the sockets are to be opened again; None where the stream is closed."""
        broker = self._broker
        try:
            turn_began, lapsed_at = time.monotonic(), broker.clock_s
            while not self.is_closing:
                engines, workers = sockets.receive(POLL_MS)
                now = time.monotonic()
                passed_s, turn_began = min(now - turn_began, LONGEST_TURN_S), now
                from_engines = self._decode(engines, decode_from_engine, "malformed_completion")
                from_workers = self._decode(workers, decode_from_worker, "malformed_worker_message")
                with self._changed:
                    broker.clock_s += passed_s
                    for identity, messages in from_engines:
                        broker.take_from_engine(identity, messages)
                    for identity, messages in from_workers:
                        broker.take_from_worker(identity, messages)
                    # Not before all mail is read: a worker's sign of life may be in it.
                    if broker.clock_s - lapsed_at >= LAPSE_INTERVAL_S and len(workers) < MAX_FRAMES_PER_TURN:
                        lapsed_at = broker.clock_s
                        broker.lapse()
                    self._send(sockets)
        except zmq.ZMQError as error:
            return repr(error)
        return None

    def _send(self, sockets: BrokerSockets) -> None:
        for worker_id, process, frames in self._broker.take_work():
            if not sockets.send_to_worker(process, frames):
                self._broker.lose(worker_id, "its connection is gone")
        for identity, answer in self._broker.take_answers():
            sockets.send_to_engine(identity, answer)
        if self._broker.has_scored:  # last: who waits for them wants the lock
            self._changed.notify_all()

    def _decode(
        self, received: list[Received], decode: Callable[[memoryview], list[_T]], reason: str
    ) -> list[tuple[bytes, list[_T]]]:
        decoded: list[tuple[bytes, list[_T]]] = []
        for identity, frames in received:
            try:
                decoded.append((identity, [message for frame in frames for message in decode(frame)]))
            except ProtocolError as error:
                with self._changed:
                    self._broker.refuse(reason, str(error))
        return decoded
