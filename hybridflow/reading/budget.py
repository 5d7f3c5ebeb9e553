"""How much a compressed file may become."""

from __future__ import annotations

from pathlib import Path

from hybridflow.reading.bounded_json import Unreadable

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
