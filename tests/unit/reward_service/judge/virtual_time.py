"""An event loop in which waiting takes no time: it goes to the next timer whenever no socket has anything to say."""

from __future__ import annotations

import asyncio
import selectors


class _Selector(selectors.DefaultSelector):
    """Its clock moves where it would wait. Loopback sockets deliver at once, so what is under way comes first."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout is None:
            return ready or super().select(None)
        self.now_s += max(timeout, 0.0)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Server and client have to run in it together: for another thread or process no time would pass meanwhile."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s

    def stand_still(self, seconds: float) -> None:
        """As if the process had been stopped for so long."""
        self._virtual.now_s += seconds
