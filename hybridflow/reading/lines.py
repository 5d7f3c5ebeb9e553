"""Lines of a file, one at a time, none of them longer than a bound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from hybridflow.reading.bounded_json import Unreadable

MAX_LINE_BYTES = 64 * 2**20
"""A document of a million tokens has about 4 MiB."""


def iter_lines(file: BinaryIO, max_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """Each line with its end, as it is there. Raises Unreadable for one above `max_bytes`, end included."""
    number = 0
    while line := file.readline(max_bytes + 1):
        number += 1
        if len(line) > max_bytes:
            raise Unreadable(
                f"line {number} has more than {max_bytes} bytes. Remedy: write one JSON object per line, and shorten it"
            )
        yield line
