"""The driver's sockets get addresses that other nodes can use."""

from __future__ import annotations

import zmq

from hybridflow.errors import RewardError


def bind(socket: zmq.Socket[bytes], host: str) -> str:
    """Binds a free port of `host` and returns the endpoint as it is handed out. RewardError for a host that cannot be.

    No wildcard: nobody could connect to it.
    """
    if host in ("*", "0.0.0.0", "::"):
        raise RewardError(
            f"the reward stream cannot bind {host!r}: give the address by which other nodes reach this one"
        )
    try:
        socket.bind(f"tcp://{host}:*")
    except zmq.ZMQError as error:
        raise RewardError(
            f"cannot bind the reward stream to {host!r}: {error}; name an address of this node"
        ) from error
    return socket.get_string(zmq.LAST_ENDPOINT)
