"""What the judge was asked, what it answered and what that cost."""

from __future__ import annotations

import msgspec

TOKENS_OF_A_PRICE = 1_000_000


class JudgeCounts(msgspec.Struct):
    """Totals since the start of this process."""

    verdicts: int = 0
    """Yes and no, those included that were cached or asked for by two at a time."""
    unknown: int = 0
    cached: int = 0
    """Of the verdicts."""
    requests: int = 0
    answers: int = 0
    """Chat completions, readable or not."""
    unreadable: int = 0
    """Of these, without exactly one kind of verdict."""
    late: int = 0
    """Requests given up or doubled because their answer took too long."""
    hedges: int = 0
    """Of these, doubled."""
    failures: dict[str, int] = {}
    """By kind: busy (429), server_error, refused, timeout, unreachable, malformed."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """In the currency of the prices of the section."""

    def failed(self, kind: str) -> None:
        self.failures[kind] = self.failures.get(kind, 0) + 1

    def answered(self, prompt_tokens: int, completion_tokens: int, prices: tuple[float, float]) -> None:
        """One chat completion. `prices`: per million prompt tokens and per million completion tokens."""
        self.answers += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        self.cost += (prompt_tokens * prices[0] + completion_tokens * prices[1]) / TOKENS_OF_A_PRICE
