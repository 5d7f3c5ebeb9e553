"""Bounds on reading files of others: how much a compressed one may become, and how long a line may be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hybridflow.reading.bounded_json import Unreadable

MAX_LINE_BYTES = 64 * 2**20
"""A document of a million tokens has about 4 MiB."""


def iter_lines(file: BinaryIO, max_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes | Unreadable]:
    """Each line with its end, as it is there; in the place of one above `max_bytes`, end included, what to say of it.

    Never more than `max_bytes` are in memory.
    """
    while line := file.readline(max_bytes + 1):
        if len(line) <= max_bytes:
            yield line
            continue
        num_bytes = len(line)
        while not line.endswith(b"\n") and (line := file.readline(max_bytes)):
            num_bytes += len(line)
        yield Unreadable(
            f"a line of {num_bytes} bytes; at most {max_bytes} are read. Remedy: shorten it, and write one JSON object "
            "per line"
        )


ALWAYS_BYTES = 256 * 2**20
PER_BYTE = 100
"""Text shrinks to a fifth or a tenth; rows that repeat a document, to a fiftieth."""
ROW_BYTES = 1000
"""Bytes of a row beside what it holds: an empty one takes this much, too, once it is told to be empty."""


class ExpansionBudget:
    """Counts what comes out of a file, so that one of a few kilobytes does not fill the memory."""

    def __init__(self, path: Path) -> None:
        self.num_bytes = ALWAYS_BYTES + PER_BYTE * path.stat().st_size
        self._left = self.num_bytes

    def spend(self, num_bytes: int) -> None:
        """Raises Unreadable when it is used up."""
        self._left -= num_bytes
        if self._left < 0:
            raise Unreadable(
                f"unpacks to more than {self.num_bytes >> 20} MiB, far more than a file of its size holds. Remedy: if "
                "that is meant, unpack it to JSON lines, or split it into several files"
            )
