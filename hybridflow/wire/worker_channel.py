"""The reward worker's end of the reward stream.

DEALER can lose verdicts in its buffers when this process dies, and work it has not read: the stream gives both to
another worker. It blocks at its high-water mark; verdicts stay below it, as there is at most one per credit, and an
announcement is dropped there, as another follows.
"""

from __future__ import annotations

from contextlib import suppress

import zmq

from hybridflow.errors import RewardError
from hybridflow.types import Verdict
from hybridflow.wire.codec import MAX_FRAME_BYTES, decode_to_worker, encode
from hybridflow.wire.messages import MAX_CREDITS, Bye, FromWorker, Ready, ScoreReply, ToWorker

LINGER_S = 1.0
"""Time that close() gives the last verdicts to leave."""


class WorkerChannel:
    """One DEALER socket; used from the thread that created it.

    Raises:
        RewardError: `credits` is outside 1 .. MAX_CREDITS.
    """

    def __init__(self, endpoint: str, worker_id: str, credits: int) -> None:
        try:
            self._hello = Ready(worker_id, credits)
        except ValueError as error:
            raise RewardError(str(error)) from error
        self._worker_id = worker_id
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.SNDHWM, 4 * MAX_CREDITS)
        self._socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.connect(endpoint)

    def announce(self) -> None:
        """Says that this worker is there. Said again while idle, it makes up for a connection that was re-made."""
        with suppress(zmq.Again):
            self._socket.send(encode(self._hello), zmq.NOBLOCK)

    def receive(self, timeout_s: float) -> ToWorker | None:
        """The next message, or None where none came in time. ProtocolError on a malformed one."""
        if not self._socket.poll(int(timeout_s * 1000)):
            return None
        return decode_to_worker(self._socket.recv())

    def reply(self, completion_id: str, verdict: Verdict) -> None:
        """Sends one verdict."""
        self._send(ScoreReply(self._worker_id, completion_id, verdict))

    def leave(self) -> None:
        """Hands back what is not answered."""
        self._send(Bye(self._worker_id))

    def close(self) -> None:
        """Frees the socket after at most LINGER_S."""
        self._context.destroy(linger=int(LINGER_S * 1000))

    def _send(self, message: FromWorker) -> None:
        self._socket.send(encode(message))
