"""Frames between a reward worker and its scoring process: 4 bytes of length, one byte of kind, content."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_HEAD = struct.Struct("<IB")

SETUP, REQUEST, READY, VERDICT, VERDICT_THEN_END, FAILED = range(6)
"""READY: verifiers are loaded. VERDICT_THEN_END: the process is not fit for another item. FAILED: a text, why it could
not start."""


def write_frame(kind: int, content: bytes) -> bytes:
    return _HEAD.pack(len(content), kind) + content


class FrameReader:
    """Cuts what arrives into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(kind, content) of each frame that is complete now."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _HEAD.size:
            length, kind = _HEAD.unpack_from(self._buffer, start)
            end = start + _HEAD.size + length
            if len(self._buffer) < end:
                break
            yield kind, bytes(self._buffer[start + _HEAD.size : end])
            start = end
        del self._buffer[:start]
