"""Budget of tokens that an engine should hold at once, learnt from what it retracts. Pure.

SGLang retracts a running request, and computes its tokens again later, when decoding fills its KV pool. A budget in
tokens of prompt and expected completion keeps the pool full and retractions rare: it falls by a factor with each
retraction and rises by a step with each completion that was left alone (AIMD, as in TCP congestion control).
"""

from __future__ import annotations

DECREASE = 0.95
"""Factor for each retraction of a finished completion: a group of 8 retracted once each costs a third."""
INCREASE = 0.01
"""Share of the pool for each completion that was not retracted."""
LOWEST, HIGHEST = 0.25, 2.0
"""Bounds as shares of the pool. Above 1, as completions do not all reach their expected length at one time; what does
not fit yet waits in SGLang's own queue."""


class TokenBudget:
    """Limit of tokens in flight of one engine; starts at its KV pool."""

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity = capacity_tokens
        self._limit = float(capacity_tokens)

    @property
    def limit(self) -> int:
        """Tokens."""
        return int(self._limit)

    def finished(self, num_retractions: int) -> None:
        """A completion ended that SGLang retracted so many times."""
        calm = self._limit + INCREASE * self._capacity
        changed = self._limit * DECREASE**num_retractions if num_retractions else calm
        self._limit = min(HIGHEST * self._capacity, max(LOWEST * self._capacity, changed))


class LengthEstimate:
    """Expected tokens of a completion: the mean of those that ended, `max_new_tokens` before the first."""

    def __init__(self, max_new_tokens: int) -> None:
        self._max_new_tokens = max_new_tokens
        self._num = 0
        self._sum = 0

    @property
    def expected(self) -> int:
        return -(-self._sum // self._num) if self._num else self._max_new_tokens

    def observe(self, num_tokens: int) -> None:
        self._num += 1
        self._sum += num_tokens
