"""Messages of several frames over a ZeroMQ socket, without the copies and the enums of pyzmq's own functions: these
cost more than the messages do.
"""

from __future__ import annotations

from collections.abc import Sequence

import zmq

Received = tuple[bytes, list[memoryview]]
"""Identity of a connection, and the frames that came on it together."""

IN, OUT = int(zmq.POLLIN), int(zmq.POLLOUT)
_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.SNDMORE) | _NOBLOCK


def receive_frames(socket: zmq.Socket[bytes]) -> Received:
    """From a ROUTER, where ZeroMQ has them: a completion is large. zmq.Again where there is none."""
    first = socket.recv(_NOBLOCK, copy=False)
    return first.bytes, _receive_rest(socket, first)


def receive_parts(socket: zmq.Socket[bytes]) -> list[memoryview]:
    """The same of a DEALER, whose messages have no identity."""
    first = socket.recv(_NOBLOCK, copy=False)
    return [first.buffer, *_receive_rest(socket, first)]


def send_frames(socket: zmq.Socket[bytes], frames: Sequence[bytes | bytearray | zmq.Frame]) -> None:
    """Together, or none of them: zmq.Again where there is no room. A zmq.Frame is referred to, the rest is copied."""
    for frame in frames[:-1]:
        socket.send(frame, _MORE)
    socket.send(frames[-1], _NOBLOCK)


def _receive_rest(socket: zmq.Socket[bytes], frame: zmq.Frame) -> list[memoryview]:
    parts: list[memoryview] = []
    while frame.more:
        frame = socket.recv(_NOBLOCK, copy=False)
        parts.append(frame.buffer)
    return parts
