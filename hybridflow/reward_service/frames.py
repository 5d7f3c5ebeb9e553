"""Frames between a reward worker and its scoring process: 4 bytes of length, one byte of kind, content."""

from __future__ import annotations

import socket
import struct

CHUNK_BYTES = 1 << 16
"""Read at a time: several requests of usual size."""
_HEAD = struct.Struct("<IB")

SETUP, REQUEST, READY, VERDICT, VERDICT_THEN_END, FAILED = range(6)
"""READY: verifiers are loaded. VERDICT_THEN_END: the process is not fit for another item. FAILED: a text, why it could
not start."""


def write_frame(kind: int, content: bytes) -> bytes:
    return _HEAD.pack(len(content), kind) + content


class FrameReader:
    """Reads frames from a stream socket."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._chunk = bytearray(CHUNK_BYTES)  # kept: a new one each time is new memory each time
        self._buffer = bytearray()

    def read(self) -> list[tuple[int, bytes]] | None:
        """(kind, content) of each frame that one read completes; None: the other end is closed.

        Raises what `recv` raises: BlockingIOError or TimeoutError where nothing is there, ConnectionResetError.
        """
        num_bytes = self._channel.recv_into(self._chunk)
        if not num_bytes:
            return None
        frames: list[tuple[int, bytes]] = []
        with memoryview(self._chunk) as chunk:
            self._buffer += chunk[:num_bytes]
        start = 0
        with memoryview(self._buffer) as buffer:
            while len(buffer) - start >= _HEAD.size:
                length, kind = _HEAD.unpack_from(buffer, start)
                end = start + _HEAD.size + length
                if len(buffer) < end:
                    break
                frames.append((kind, bytes(buffer[start + _HEAD.size : end])))
                start = end
        del self._buffer[:start]
        return frames
