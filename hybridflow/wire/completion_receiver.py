"""The driver's end of the completions where nobody scores them.

PULL loses nothing of its own: a sender blocks at the high-water mark instead of dropping.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import zmq

from hybridflow.types import Completion
from hybridflow.wire.binding import bind
from hybridflow.wire.codec import MAX_FRAME_BYTES, decode_from_engine
from hybridflow.wire.messages import Finished


class CompletionReceiver:
    """Takes finished completions of any number of engines, in order of arrival. For one thread.

    Args:
        host: Address to bind; no wildcard.
        admit: Says whether a completion counts, see `rollout.leases`.
    """

    def __init__(self, host: str, admit: Callable[[Finished], bool]) -> None:
        self._admit = admit
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self.endpoint_completions = bind(self._socket, host)

    def next(self, timeout_s: float) -> Completion | None:
        """The next completion that counts, or None where the next message came too late or not at all.

        ProtocolError for a message that an engine of this version would not send.
        """
        if not self._socket.poll(int(timeout_s * 1000)):
            return None
        message = decode_from_engine(self._socket.recv())
        return message.completion if self._admit(message) else None

    def close(self) -> None:
        """May be called twice."""
        self._context.destroy(linger=0)

    def __enter__(self) -> CompletionReceiver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
