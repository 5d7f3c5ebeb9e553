"""The engine's end of the reward stream.

PUSH can lose what is in its buffers when this process dies: those completions stay unfinished in the driver's leases,
and another engine decodes them again. It loses nothing else: it queues for live connections only
(ZMQ_IMMEDIATE), blocks at its high-water mark, and close() flushes for a bounded time.
"""

from __future__ import annotations

import threading
from types import TracebackType

import zmq

from hybridflow.errors import ProtocolError, RewardError
from hybridflow.types import Completion
from hybridflow.wire.codec import encode
from hybridflow.wire.messages import Finished

HIGH_WATER_MARK = 256
"""Completions buffered in this process before send() blocks."""


class CompletionSender:
    """Sends finished completions of one engine to the driver, in order. `send` may be called from any thread.

    Args:
        endpoint: `RewardStream.endpoint_completions`.
        engine_id: Name of the engine, for messages.
        send_timeout_s: Longest time that `send` blocks.
        flush_timeout_s: Longest time that `close` waits until everything sent has left this process.
    """

    def __init__(
        self, endpoint: str, engine_id: str, *, send_timeout_s: float = 60.0, flush_timeout_s: float = 10.0
    ) -> None:
        self._endpoint = endpoint
        self._engine_id = engine_id
        self._send_timeout_s = send_timeout_s
        self._flush_timeout_s = flush_timeout_s
        self._lock = threading.Lock()  # a ZeroMQ socket belongs to one thread at a time
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.set(zmq.IMMEDIATE, 1)
        self._socket.set(zmq.SNDHWM, HIGH_WATER_MARK)
        self._socket.set(zmq.SNDTIMEO, int(send_timeout_s * 1000))
        self._socket.connect(endpoint)

    def send(self, completion: Completion, attempt: int = 0) -> None:
        """Hands one completion over, with the attempt of the lease under which it was decoded.

        Blocks while the buffers are full or the stream is not reachable.

        Raises:
            ProtocolError: the completion contradicts itself or is too large.
            RewardError: the stream took nothing for `send_timeout_s`, or this sender is closed.
        """
        frame = encode(_finished(self._engine_id, completion, attempt))
        with self._lock:
            try:
                self._socket.send(frame)
            except zmq.Again as error:
                raise RewardError(
                    f"engine {self._engine_id} could not send {completion.completion_id} to {self._endpoint} within "
                    f"{self._send_timeout_s} s: is the driver alive and reachable from this node?"
                ) from error
            except zmq.ZMQError as error:
                raise RewardError(f"engine {self._engine_id} could not send to {self._endpoint}: {error}") from error

    def close(self) -> None:
        """Flushes for at most `flush_timeout_s`, then drops what is left. May be called twice."""
        with self._lock:
            self._context.destroy(linger=int(self._flush_timeout_s * 1000))

    def __enter__(self) -> CompletionSender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _finished(engine_id: str, completion: Completion, attempt: int) -> Finished:
    try:
        return Finished(engine_id, completion, attempt)
    except ValueError as error:
        raise ProtocolError(f"engine {engine_id}: {error}") from error
