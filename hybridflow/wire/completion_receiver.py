"""The driver's end of the completions where nobody scores them.

A completion is accepted when `next` reads it; a sender waits while nobody calls `next`. Nothing is lost; one
may come twice where a connection broke, which `admit` is to notice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType

import zmq

from hybridflow.errors import RewardError
from hybridflow.types import Completion
from hybridflow.wire.codec import MAX_FRAME_BYTES, decode_from_engine, encode
from hybridflow.wire.endpoint import Endpoint, Listening
from hybridflow.wire.flow import WINDOW
from hybridflow.wire.messages import Accepted, Finished, FromEngine, Hello, unpack_completion


class CompletionReceiver:
    """Takes finished completions of any number of engines, in order of arrival. For one thread.

    Args:
        host: Address of this node by which engines reach it; encrypted then. None: they are on this machine, and the
            socket is in a folder that no other user may enter. See endpoint.py.
        admit: Says whether a completion counts, see `rollout.driver.dispatcher`.

    Raises:
        RewardError: the address cannot be bound.
    """

    def __init__(self, host: str | None, admit: Callable[[Finished], bool]) -> None:
        self._listening = Listening(host)
        keys = self._listening.keys
        self._admit = admit
        self._arrived: deque[tuple[bytes, FromEngine]] = deque()  # the rest of what came together
        self._context = zmq.Context()
        self._stop_authenticator = keys.start_authenticator(self._context) if keys else None
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        if keys:
            keys.protect(self._socket)
        try:
            self._socket.bind(self._listening.completions)
        except zmq.ZMQError as error:
            self.close()
            raise RewardError(
                f"cannot take completions at {self._listening.completions}: {error}; name an address of this node"
            ) from error
        address = self._socket.get_string(zmq.LAST_ENDPOINT)
        self.endpoint_completions = Endpoint(address, keys.for_clients if keys else None)

    def next(self, timeout_s: float) -> Completion | None:
        """The next completion that counts, or None where the next message was none, came too late or not at all.

        ProtocolError for a message that an engine of this version would not send.
        """
        if not self._arrived:
            if not self._socket.poll(int(timeout_s * 1000)):
                return None
            identity, *frames = self._socket.recv_multipart(copy=False)
            self._arrived.extend(
                (identity.bytes, message) for frame in frames for message in decode_from_engine(frame.buffer)
            )
        identity, message = self._arrived.popleft()
        if isinstance(message, Hello):
            self._answer(identity, Accepted([], WINDOW, message.number))
            return None
        self._answer(identity, Accepted([message.number], WINDOW))
        return unpack_completion(message.packed) if self._admit(message) else None

    def _answer(self, identity: bytes, message: Accepted) -> None:
        self._socket.send_multipart([identity, encode(message)], zmq.NOBLOCK)

    def close(self) -> None:
        """May be called twice."""
        if self._stop_authenticator is not None:
            self._stop_authenticator()
            self._stop_authenticator = None
        self._context.destroy(linger=1000)
        self._listening.close()

    def __enter__(self) -> CompletionReceiver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
