"""Peak memory of a run: what the driver and all its descendants hold, Ray's daemons and SGLang's processes among them.

Measured as proportional set size (PSS): a page that n processes share counts 1/n in each, so shared memory (Ray's
object store, libraries, tensors passed by handle) is counted once in the sum. Where the kernel does not tell it,
resident size minus shared pages is taken, which leaves shared memory out; `method` says which it was. Processes of a
Ray cluster that was already running are no descendants of the driver, and are not seen.
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Literal

import psutil

GIB = 1024**3


class PeakMemory:
    """Samples the memory of a process tree in a thread.

    with PeakMemory() as memory:
        ...
    print(memory.peak_gib)
    """

    def __init__(self, pid: int | None = None, *, period_s: float = 1.0) -> None:
        self._root = psutil.Process(pid)
        self._period_s = period_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._peak_bytes = 0
        self.method: Literal["pss", "rss - shared"] = (
            "pss" if _pss_bytes(self._root.pid) is not None else "rss - shared"
        )

    @property
    def peak_gib(self) -> float:
        """Highest total seen so far, in GiB."""
        return self._peak_bytes / GIB

    def sample(self) -> float:
        """Total now, in GiB; a new highest one is remembered. A process that ends meanwhile counts 0."""
        try:
            processes = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0.0
        total = sum(self._bytes_of(process) for process in processes)
        self._peak_bytes = max(self._peak_bytes, total)
        return total / GIB

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="peak memory", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample and end the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.sample()

    def __enter__(self) -> PeakMemory:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.sample()
            self._stop.wait(self._period_s)

    def _bytes_of(self, process: psutil.Process) -> int:
        if self.method == "pss":
            return _pss_bytes(process.pid) or 0
        try:
            memory = process.memory_info()
        except psutil.Error:
            return 0
        return max(0, memory.rss - getattr(memory, "shared", 0))


def _pss_bytes(pid: int) -> int | None:
    """From /proc/<pid>/smaps_rollup; None where that cannot be read."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None
    return None
