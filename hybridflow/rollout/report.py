"""What the completions of a step add up to."""

from __future__ import annotations

from collections import Counter

from hybridflow.types import RolloutReport
from hybridflow.wire.packed import PackedCompletion


class Totals:
    """Sums over admitted completions."""

    def __init__(self) -> None:
        self._num = 0
        self._prompt = 0
        self._cached = 0
        self._response = 0
        self._retractions = 0
        self._resumed = 0

    def add(self, packed: PackedCompletion) -> None:
        completion = packed.head
        self._num += 1
        self._prompt += completion.prompt_tokens
        self._cached += completion.cached_tokens
        self._response += packed.num_tokens - completion.resumed_tokens
        self._retractions += completion.num_retractions
        self._resumed += completion.resumed_tokens

    def report(self, events: Counter[str]) -> RolloutReport:
        """The totals, with what else happened by name."""
        return RolloutReport(
            num_completions=self._num,
            prompt_tokens=self._prompt,
            cached_tokens=self._cached,
            response_tokens=self._response,
            num_retractions=self._retractions,
            resumed_tokens=self._resumed,
            events={name: number for name, number in sorted(events.items()) if number},
        )
