"""Lines of a file, one at a time, none of them longer than a bound."""

from __future__ import annotations

from collections.abc import Iterator
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
