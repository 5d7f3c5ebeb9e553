"""Scored completions on their way from the broker's thread to those that call next()."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from hybridflow.wire.packed import ScoredPacked

MAX_TAKEN = 32
"""Completions that `take` gets with one use of the lock: they are the broker's no longer, and not in `num_bytes`."""


class ScoredQueue:
    """First in, first out; any number of takers. `changed` is to be held for `put`, and notified after it."""

    def __init__(self, changed: threading.Condition) -> None:
        self.num_bytes = 0
        """Memory of what waits."""
        self._changed = changed
        self._waiting: deque[ScoredPacked] = deque()
        self._taken: deque[ScoredPacked] = deque()

    def put(self, scored: list[ScoredPacked]) -> None:
        self._waiting += scored
        self.num_bytes += sum(result.num_bytes for result in scored)

    def take(self, timeout_s: float, check: Callable[[], None]) -> ScoredPacked | None:
        """The next one, or None where none came in time. `check` raises where none can come any more."""
        if self._taken:
            try:
                return self._taken.popleft()
            except IndexError:
                pass  # another taker was faster
        deadline = time.monotonic() + timeout_s
        with self._changed:
            check()
            while not self._waiting:
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0:
                    return None
                self._changed.wait(remaining_s)
                check()
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_TAKEN))]
            self.num_bytes -= sum(result.num_bytes for result in batch)
        self._taken.extend(batch[1:])
        return batch[0]
