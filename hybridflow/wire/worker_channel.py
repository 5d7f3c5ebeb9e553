"""The reward worker's end of the reward stream.

DEALER can lose verdicts and work with a connection or with this process: the stream leases those items again. It queues
for a connection that is not there, up to its high-water mark; above it announcements are dropped, as others follow, and
verdicts wait here, at most one per credit.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Iterable
from contextlib import suppress

import zmq

from hybridflow.errors import RewardError
from hybridflow.types import Verdict
from hybridflow.wire.codec import MAX_FRAME_BYTES, decode_to_worker, encode, join
from hybridflow.wire.endpoint import Endpoint
from hybridflow.wire.messages import MAX_CREDITS, Bye, Ready, ScoreReply, ToWorker

LINGER_S = 1.0
"""Time that close() gives the last verdicts to leave."""


class WorkerChannel:
    """One DEALER socket; used from the thread that created it.

    Raises:
        RewardError: `credits` is outside 1 .. MAX_CREDITS.
    """

    def __init__(self, endpoint: Endpoint, worker_id: str, credits: int) -> None:
        self._process = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._worker_id = worker_id
        self._credits = credits
        try:
            self._ready([])
        except ValueError as error:
            raise RewardError(str(error)) from error
        self._replies: list[tuple[str, bytearray]] = []  # (completion id, encoded reply)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        # Not ZMQ_IMMEDIATE: it throws away what has arrived, a Stop for one, when the other end closes.
        self._socket.set(zmq.SNDHWM, 4 * MAX_CREDITS)
        self._socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.set(zmq.RECONNECT_IVL, 50)
        self._socket.set(zmq.RECONNECT_IVL_MAX, 1000)
        endpoint.connect(self._socket)

    def announce(self, holding: Iterable[str]) -> None:
        """Says that this worker is there and what it has not answered."""
        unsent = [completion_id for completion_id, _ in self._replies]
        with suppress(zmq.Again):
            self._socket.send(encode(self._ready([*holding, *unsent])), zmq.NOBLOCK)

    def wait(self, timeout_s: float, read: Iterable[int] = (), write: Iterable[int] = ()) -> None:
        """Returns when there is a message, when one of the other descriptors can be read or written, or in time."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN | (zmq.POLLOUT if self._replies else 0))
        flags: dict[int, int] = {}
        for descriptors, flag in ((read, zmq.POLLIN), (write, zmq.POLLOUT)):
            for descriptor in descriptors:
                flags[descriptor] = flags.get(descriptor, 0) | flag
        for descriptor, flag in flags.items():
            poller.register(descriptor, flag)
        poller.poll(math.ceil(timeout_s * 1000))

    def receive(self) -> list[ToWorker]:
        """The messages that are there. ProtocolError on a malformed one."""
        messages: list[ToWorker] = []
        with suppress(zmq.Again):
            while True:
                for frame in self._socket.recv_multipart(zmq.NOBLOCK):
                    messages += decode_to_worker(frame)
        return messages

    def reply(self, completion_id: str, verdict: Verdict) -> None:
        """Takes one verdict; `flush` sends it."""
        self._replies.append((completion_id, encode(ScoreReply(self._worker_id, completion_id, verdict))))

    def flush(self) -> None:
        """Sends verdicts as far as there is a connection."""
        with suppress(zmq.Again):
            if self._replies:
                self._socket.send_multipart(join(reply for _, reply in self._replies), zmq.NOBLOCK)
                self._replies.clear()

    def leave(self) -> None:
        """Says good-bye: what is not answered goes back, and the stream need not wait for this worker."""
        with suppress(zmq.Again):
            self._socket.send(encode(Bye(self._worker_id)), zmq.NOBLOCK)

    def close(self) -> None:
        """Frees the socket after at most LINGER_S."""
        self._context.destroy(linger=int(LINGER_S * 1000))

    def _ready(self, holding: list[str]) -> Ready:
        return Ready(self._worker_id, self._process, self._credits, holding)
