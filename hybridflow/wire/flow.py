"""Flow control of engines, how fast they may send: a pure machine.

It remembers what to tell each engine, and closes the window while rewards lag.

Above `limit_bytes` of completions without a verdict, or not yet taken by the consumer, every engine is told a window of
0; below half of it, of WINDOW again. The gap keeps the window from flapping. What may come on top of the limit is what
engines have under way when it closes: at most WINDOW completions each.
"""

from __future__ import annotations

from collections import Counter

from hybridflow.wire.messages import Accepted

WINDOW = 64
"""Completions that one engine may have sent without their being accepted."""
MAX_ENGINES = 4096
"""On one set of connections; further ones are refused."""


class EngineFlow:
    """Answers for engines, by ROUTER identity, and whether they are held back."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_since: float | None = None
        self._held_s = 0.0
        self._engines: dict[str, bytes] = {}  # engine id -> identity of its present connection
        self._accepted: dict[bytes, list[int]] = {}
        self._hello: Counter[bytes] = Counter()

    @property
    def is_held(self) -> bool:
        return self._held_since is not None

    def reconnect(self) -> None:
        """All connections are gone; what was to be said on them is asked for again."""
        self._engines.clear()
        self._accepted.clear()
        self._hello.clear()

    def knows(self, identity: bytes, engine_id: str) -> bool:
        """Notes the present connection of an engine; False for one too many."""
        if self._engines.get(engine_id) != identity:
            if engine_id not in self._engines and len(self._engines) >= MAX_ENGINES:
                return False
            self._engines[engine_id] = identity
        return True

    def accepted(self, identity: bytes, numbers: list[int]) -> None:
        """Notes that these completions of an engine have arrived, and are kept or known."""
        self._accepted.setdefault(identity, []).extend(numbers)

    def asked(self, identity: bytes, number: int) -> None:
        """An engine said Hello."""
        self._accepted.setdefault(identity, [])
        self._hello[identity] = number

    def update(self, num_bytes: int, now: float) -> bool:
        """Opens or closes the window by the bytes that wait; True where that changed."""
        if self._held_since is None and num_bytes >= self._limit_bytes:
            self._held_since = now
            return True
        if self._held_since is not None and num_bytes <= self._limit_bytes // 2:
            self._held_s += now - self._held_since
            self._held_since = None
            for identity in self._engines.values():
                self._accepted.setdefault(identity, [])
            return True
        return False

    def take_answers(self) -> list[tuple[bytes, Accepted]]:
        """Answers to send now, by connection."""
        window = 0 if self.is_held else WINDOW
        answers = [
            (identity, Accepted(numbers, window, self._hello[identity])) for identity, numbers in self._accepted.items()
        ]
        self._accepted.clear()
        self._hello.clear()
        return answers

    def held_s(self, now: float) -> float:
        """Seconds in which engines were held back, since the start."""
        return self._held_s + (now - self._held_since if self._held_since is not None else 0.0)
