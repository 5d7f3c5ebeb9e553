"""Columns that a function on tokens may name."""

from __future__ import annotations

from hybridflow.algorithms.objective import COMPUTED, TokenBatch
from hybridflow.types.tokens import COLUMNS

OF_ROWS = ("advantages", "first", "share", "staleness")
"""Follow from a row and its counted tokens; see `trainer.batch.OF_ROW`."""


def token_columns() -> list[str]:
    """Names of all columns with one number per token."""
    of_completions = {name for name, kind in COLUMNS.items() if kind in (list[int], list[float]) and name != "ids"}
    return sorted({*OF_ROWS, *COMPUTED, *of_completions})


def offered_of_tokens() -> list[str]:
    """Names of all that a function on tokens may take."""
    return ["logprobs", *token_columns(), "rows", "tokens"]


def give_tokens(tokens: TokenBatch) -> dict[str, object]:
    """Everything that such a function may take, by name."""
    return {**tokens.columns, "logprobs": tokens.logprobs_N, "rows": tokens.rows, "tokens": tokens}
