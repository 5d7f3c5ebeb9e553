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
from hybridflow.wire.endpoint import Endpoint, ServerKeys, is_loopback, refuse_wildcard
from hybridflow.wire.flow import WINDOW
from hybridflow.wire.messages import Accepted, Finished, FromEngine, Hello
from hybridflow.wire.packed import unpack_completion


class CompletionReceiver:
    """Takes finished completions of any number of engines, in order of arrival. For one thread.

    Args:
        host: Address to bind, one that engines can reach; beyond the loopback what arrives is encrypted, and only
            holders of the run's key are admitted.
        admit: Says whether a completion counts, see `rollout.leases`.
        is_encrypted: None: where `host` is beyond the loopback.

    Raises:
        RewardError: the address cannot be bound.
    """

    def __init__(self, host: str, admit: Callable[[Finished], bool], is_encrypted: bool | None = None) -> None:
        refuse_wildcard(host)
        keys = ServerKeys() if (not is_loopback(host) if is_encrypted is None else is_encrypted) else None
        self._admit = admit
        self._arrived: deque[tuple[bytes, FromEngine]] = deque()  # the rest of what came together
        self._context = zmq.Context()
        self._stop_authenticator = keys.start_authenticator(self._context) if keys else None
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        if keys:
            keys.protect(self._socket)
        try:
            self._socket.bind(f"tcp://{host}:*")
        except zmq.ZMQError as error:
            self.close()
            raise RewardError(f"cannot take completions at {host}: {error}; name an address of this node") from error
        address = self._socket.get_string(zmq.LAST_ENDPOINT)
        self.endpoint_completions = Endpoint(address, keys.for_clients if keys else None)

    def next(self, timeout_s: float) -> Completion | None:
        """The next completion that counts, or None where the next message was none, came too late or not at all.

        ProtocolError for a message that an engine of this version would not send.
        """
        if not self._arrived:
            if not self._socket.poll(int(timeout_s * 1000)):
                return None
            identity, *frames = self._socket.recv_multipart()
            self._arrived.extend((identity, message) for frame in frames for message in decode_from_engine(frame))
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

    def __enter__(self) -> CompletionReceiver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
