"""The reward worker's end of the reward stream.

DEALER can lose verdicts and work with a connection or with this process: the stream leases those items again. It queues
for a connection that is not there, up to its high-water mark; above it announcements are dropped, as others follow, and
verdicts wait here, at most one per credit.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import zmq

from hybridflow.errors import RewardError
from hybridflow.types import Verdict
from hybridflow.wire.codec import MAX_FRAME_BYTES, Batch, decode_to_worker, encode
from hybridflow.wire.endpoint import Endpoint
from hybridflow.wire.frames import IN, OUT, receive_parts, send_frames
from hybridflow.wire.messages import MAX_CREDITS, Bye, Ready, ScoreReply, ToWorker

LINGER_S = 1.0
"""Time that close() gives the last verdicts to leave."""


class WorkerChannel:
    """One DEALER socket; used from the thread that created it.

    Raises:
        RewardError: `credits` is outside 1 .. MAX_CREDITS.
    """

    def __init__(self, endpoint: Endpoint, worker_id: str, credits: int) -> None:
        self._worker_id = worker_id
        self._credits = credits
        try:
            self._ready([])
        except ValueError as error:
            raise RewardError(str(error)) from error
        self._replies = Batch()
        self._outgoing: list[bytearray] = []  # frames that are made of it
        self._unsent: list[str] = []  # ids of the completions in both
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.ROUTING_ID, b"w" + secrets.token_bytes(16))  # see messages.py
        # Not ZMQ_IMMEDIATE: it throws away what has arrived, a Stop for one, when the other end closes.
        self._socket.set(zmq.SNDHWM, 4 * MAX_CREDITS)
        self._socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.set(zmq.RECONNECT_IVL, 50)
        self._socket.set(zmq.RECONNECT_IVL_MAX, 1000)
        self._poller, self._flags = zmq.Poller(), dict[Any, int]()
        endpoint.connect(self._socket)

    def announce(self, holding: Iterable[str]) -> None:
        """Says that this worker is there and what it has not answered."""
        with suppress(zmq.Again):
            self._socket.send(encode(self._ready([*holding, *self._unsent])), zmq.NOBLOCK)

    def wait(self, timeout_s: float, read: Iterable[int] = (), write: Iterable[int] = ()) -> None:
        """Returns when there is a message, when one of the other descriptors can be read or written, or in time."""
        flags: dict[Any, int] = {self._socket: IN | OUT if self._outgoing else IN}
        for descriptors, flag in ((read, IN), (write, OUT)):
            for descriptor in descriptors:
                flags[descriptor] = flags.get(descriptor, 0) | flag
        if flags != self._flags:
            self._flags, self._poller = flags, zmq.Poller()
            for item, flag in flags.items():
                self._poller.register(item, flag)
        self._poller.poll(math.ceil(timeout_s * 1000))

    def receive(self) -> list[ToWorker]:
        """The messages that are there. ProtocolError on a malformed one."""
        messages: list[ToWorker] = []
        with suppress(zmq.Again):
            while True:
                for frame in receive_parts(self._socket):
                    messages += decode_to_worker(frame)
        return messages

    def reply(self, completion_id: str, verdict: Verdict) -> None:
        """Takes one verdict; `flush` sends it."""
        self._replies.add(ScoreReply(completion_id, verdict))
        self._unsent.append(completion_id)

    def flush(self) -> None:
        """Sends verdicts as far as there is a connection."""
        if not self._unsent:
            return
        self._outgoing += self._replies.take_frames()
        with suppress(zmq.Again):
            send_frames(self._socket, self._outgoing)
            self._outgoing.clear()
            self._unsent.clear()

    def leave(self) -> None:
        """Says good-bye: what is not answered goes back, and the stream need not wait for this worker."""
        with suppress(zmq.Again):
            self._socket.send(encode(Bye()), zmq.NOBLOCK)

    def close(self) -> None:
        """Frees the socket after at most LINGER_S."""
        self._context.destroy(linger=int(LINGER_S * 1000))

    def _ready(self, holding: list[str]) -> Ready:
        return Ready(self._worker_id, self._credits, holding)
