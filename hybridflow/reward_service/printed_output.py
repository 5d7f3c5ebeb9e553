"""What a scoring process prints: read as it comes, so that it never waits; its beginning is shown, all is counted.

consumes     standard output and error of the process, also of C code and of what it starts
waits for    more of it
unblocked by it, or the end of all processes that hold the pipe
produces     the first SHOWN_BYTES per item on this process's standard error, and a count
"""

from __future__ import annotations

import os
import threading
from typing import IO

SHOWN_BYTES = 4096
"""Of what is printed for one item."""
MAX_PRINTED_BYTES = 2**20
"""For one item: more is a verifier gone wrong, which would fill the disk of a long run."""
_CHUNK_BYTES = 2**16
_CUT = b"\n(more was printed, and is not shown)\n"


class PrintedOutput:
    """Reads a pipe in a thread of its own until it ends."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._num_bytes = 0
        threading.Thread(target=self._run, name="printed", daemon=True).start()

    def take(self) -> int:
        """Bytes that were printed since the last call."""
        with self._lock:
            taken, self._num_bytes = self._num_bytes, 0
        return taken

    def _run(self) -> None:
        with self._pipe:
            while data := os.read(self._pipe.fileno(), _CHUNK_BYTES):
                with self._lock:
                    left = SHOWN_BYTES - self._num_bytes
                    self._num_bytes += len(data)
                if left > 0:
                    _show(data[:left] + (_CUT if len(data) > left else b""))


def _show(data: bytes) -> None:
    try:
        os.write(2, data)
    except OSError:
        return  # nobody listens: a closed terminal, a full disk of the log
