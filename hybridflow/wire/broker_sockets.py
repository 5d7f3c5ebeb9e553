"""The two ROUTER sockets of the reward stream, for one incarnation of them.

What each can lose, and what makes that safe:

    completions  to engines: an Accepted is dropped where its engine is gone or its queue is full. The engine asks again
                 (Hello) and sends again what was not accepted. From engines: nothing is dropped on a living connection,
                 and what a broken one loses was not accepted, so it is sent again.
    workers      what is sent to a peer that is unknown or whose queue is full. ROUTER_MANDATORY turns both into errors:
                 an unknown peer is a lost worker, whose items are queued again; a full queue cannot be, as a worker
                 holds at most MAX_CREDITS unanswered items and the mark is four times that (ZeroMQ frees the slots of
                 read messages in batches of up to half the mark). Work and verdicts that die with a connection are
                 given again when the lease lapses.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Sequence

import zmq

from hybridflow.errors import ProtocolError, RewardError
from hybridflow.wire.codec import MAX_FRAME_BYTES, decode_from_worker, encode
from hybridflow.wire.endpoint import ServerKeys
from hybridflow.wire.frames import Received, receive_frames, send_frames
from hybridflow.wire.messages import MAX_CREDITS, Accepted, Bye, Stop

MAX_FRAMES_PER_TURN = 64
"""Frames taken from one socket before the other gets its turn."""
STOP_LINGER_S = 1.0
"""Time that workers get to say good-bye when they are stopped."""
REBIND_TIMEOUT_S = 10.0
"""A port that was closed a moment ago may stay taken this long."""


class BrokerSockets:
    """Binds on construction; used by one thread afterwards.

    Args:
        completions: Address to bind, "tcp://10.0.0.1:*" for a free port.
        workers: The same.
        keys: Encrypts and admits holders of the client key alone; None for sockets in a private folder.

    Raises:
        RewardError: an address cannot be bound.
    """

    def __init__(self, completions: str, workers: str, keys: ServerKeys | None) -> None:
        self._context = zmq.Context()
        self._stop_authenticator: Callable[[], None] = (
            keys.start_authenticator(self._context) if keys else _nothing_to_stop
        )
        self.completions = self._context.socket(zmq.ROUTER)
        self.workers = self._context.socket(zmq.ROUTER)
        self.workers.set(zmq.ROUTER_MANDATORY, 1)
        self.workers.set(zmq.SNDHWM, 4 * MAX_CREDITS)
        # A worker keeps the name of its connection when it comes back, which may be before the old one is known broken.
        self.workers.set(zmq.ROUTER_HANDOVER, 1)
        try:
            for socket, address in ((self.completions, completions), (self.workers, workers)):
                socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
                socket.set(zmq.LINGER, int(STOP_LINGER_S * 1000))
                socket.set(zmq.TCP_KEEPALIVE, 1)
                socket.set(zmq.TCP_KEEPALIVE_IDLE, 30)
                if keys:
                    keys.protect(socket)
                _bind(socket, address)
        except BaseException:
            self.close(linger_s=0)
            raise
        self._poller = zmq.Poller()
        self._poller.register(self.completions, zmq.POLLIN)
        self._poller.register(self.workers, zmq.POLLIN)

    @property
    def addresses(self) -> tuple[str, str]:
        """Where completions and workers connect, as bound."""
        return self.completions.get_string(zmq.LAST_ENDPOINT), self.workers.get_string(zmq.LAST_ENDPOINT)

    def receive(self, timeout_ms: int) -> tuple[list[Received], list[Received]]:
        """Messages that are there (of engines, of workers); waits at most so long for the first."""
        ready = dict(self._poller.poll(timeout_ms))
        return (
            _drain(self.completions) if self.completions in ready else [],
            _drain(self.workers) if self.workers in ready else [],
        )

    def send_to_engine(self, identity: bytes, message: Accepted) -> None:
        """Never blocks; may be dropped, see the module docstring."""
        send_frames(self.completions, [identity, encode(message)])

    def send_to_worker(self, identity: bytes, frames: Sequence[bytes | bytearray]) -> bool:
        """False where that worker's connection is gone. Never blocks, see the module docstring."""
        try:
            send_frames(self.workers, [identity, *frames])
        except zmq.Again as error:
            raise ProtocolError("a reward worker's queue is full although its credits bound it") from error
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def stop_workers(self, identities: Iterable[bytes]) -> None:
        """Sends Stop to each worker that is still connected, and waits a moment for their last messages.

        A socket that is closed with unread messages resets its connections, and what was just sent may be lost.
        """
        waited_for = {identity for identity in identities if self.send_to_worker(identity, [encode(Stop())])}
        deadline = time.monotonic() + STOP_LINGER_S
        while waited_for and (remaining_s := deadline - time.monotonic()) > 0:
            _, messages = self.receive(int(remaining_s * 1000) + 1)
            waited_for -= {identity for identity, frames in messages if _is_bye(frames)}

    def close(self, linger_s: float = STOP_LINGER_S) -> None:
        """May be called twice."""
        self._stop_authenticator()
        self._stop_authenticator = _nothing_to_stop
        self._context.destroy(linger=int(linger_s * 1000))


def _nothing_to_stop() -> None:
    """Nothing authenticates sockets that are not encrypted, or closed."""


def _is_bye(frames: list[memoryview]) -> bool:
    try:
        return any(isinstance(message, Bye) for message in decode_from_worker(frames[-1]))
    except ProtocolError:
        return False


def _drain(socket: zmq.Socket[bytes]) -> list[Received]:
    messages: list[Received] = []
    while len(messages) < MAX_FRAMES_PER_TURN:
        try:
            messages.append(receive_frames(socket))
        except zmq.Again:
            break
    return messages


def _bind(socket: zmq.Socket[bytes], address: str) -> None:
    deadline = time.monotonic() + REBIND_TIMEOUT_S
    while True:
        try:
            socket.bind(address)
            return
        except zmq.ZMQError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise RewardError(
                    f"cannot bind the reward stream to {address}: {error}; name an address of this node"
                ) from error
            time.sleep(0.05)
