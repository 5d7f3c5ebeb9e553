"""The driver's end of the completions where nobody scores them.

A completion is accepted when `next` reads it; a sender waits while nobody calls `next`. Nothing is lost; one
may come twice where a connection broke, which `admit` is to notice.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import zmq

from hybridflow.errors import RewardError
from hybridflow.types import Completion
from hybridflow.wire.codec import MAX_FRAME_BYTES, decode_from_engine, encode
from hybridflow.wire.endpoint import Endpoint, is_loopback
from hybridflow.wire.flow import WINDOW
from hybridflow.wire.messages import Accepted, Finished, Hello
from hybridflow.wire.packed import unpack_completion


class CompletionReceiver:
    """Takes finished completions of any number of engines, in order of arrival. For one thread.

    Args:
        host: Address of the loopback: what is not scored does not leave the machine, and is not encrypted.
        admit: Says whether a completion counts, see `rollout.leases`.
    """

    def __init__(self, host: str, admit: Callable[[Finished], bool]) -> None:
        if not is_loopback(host):
            raise RewardError(f"completions that are not scored are taken on the loopback alone, not on {host!r}")
        self._admit = admit
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.bind(f"tcp://{host}:*")
        self.endpoint_completions = Endpoint(self._socket.get_string(zmq.LAST_ENDPOINT))

    def next(self, timeout_s: float) -> Completion | None:
        """The next completion that counts, or None where the next message was none, came too late or not at all.

        ProtocolError for a message that an engine of this version would not send.
        """
        if not self._socket.poll(int(timeout_s * 1000)):
            return None
        identity, frame = self._socket.recv_multipart()
        message = decode_from_engine(frame)
        if isinstance(message, Hello):
            self._answer(identity, Accepted([], WINDOW, message.number))
            return None
        self._answer(identity, Accepted([message.number], WINDOW))
        return unpack_completion(message.packed) if self._admit(message) else None

    def _answer(self, identity: bytes, message: Accepted) -> None:
        self._socket.send_multipart([identity, encode(message)], zmq.NOBLOCK)

    def close(self) -> None:
        """May be called twice."""
        self._context.destroy(linger=1000)

    def __enter__(self) -> CompletionReceiver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
