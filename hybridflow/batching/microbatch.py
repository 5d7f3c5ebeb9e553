"""Rows into micro-batches: balanced over data-parallel ranks, never above the token budget.

The loss is divided by the token count of the whole step, so that the split changes time and memory and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from hybridflow.errors import ConfigError

BUDGET_KEY = "max_tokens_per_micro_batch"


def check_budget(longest: int, budget: int) -> None:
    """Holds where a row of `longest` tokens, prompt and response, fits into a micro-batch of `budget` tokens.

    Called before the run with the longest row that the configuration allows.

    Raises:
        ConfigError: it does not fit, or the budget is not positive.
    """
    if budget < 1:
        raise ConfigError(f"{BUDGET_KEY} is {budget}, must be at least 1")
    if longest > budget:
        raise ConfigError(
            f"the longest row can have {longest} tokens (prompt and response), above {BUDGET_KEY} = {budget}: "
            f"raise {BUDGET_KEY} to {longest} or more, or shorten the prompts or responses"
        )


def plan_micro_batches(
    lengths: Sequence[int], *, num_dp_ranks: int, max_tokens_per_micro_batch: int
) -> list[list[list[int]]]:
    """plan[dp_rank][micro_batch] -> ascending indices into `lengths`. Every row is in exactly one micro-batch.

    Rows go longest first to the rank with fewest tokens (ties: fewest rows, then lowest rank), so that two ranks differ
    by at most the longest row. Within a rank, first-fit-decreasing. Equal rows keep their order: the same input gives
    the same plan. A rank without rows gets one empty micro-batch; ranks may differ in their number of micro-batches.

    Args:
        lengths: Tokens of each row, prompt and response.
        num_dp_ranks: Data-parallel ranks.
        max_tokens_per_micro_batch: The budget, a promise: no micro-batch has more tokens.

    Raises:
        ConfigError: a row is above the budget; num_dp_ranks or the budget is not positive; a length is negative.

    Example: plan_micro_batches([5, 3, 2], num_dp_ranks=2, max_tokens_per_micro_batch=5) == [[[0]], [[1, 2]]]
    """
    if num_dp_ranks < 1:
        raise ConfigError(f"num_dp_ranks is {num_dp_ranks}, must be at least 1")
    check_budget(0, max_tokens_per_micro_batch)
    for row, length in enumerate(lengths):
        if not 0 <= length <= max_tokens_per_micro_batch:
            raise ConfigError(
                f"row {row} has {length} tokens, {BUDGET_KEY} allows 0 to {max_tokens_per_micro_batch}: "
                f"raise {BUDGET_KEY} to {length} or more, or shorten the prompts or responses"
            )
    longest_first = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    rank_rows: list[list[int]] = [[] for _ in range(num_dp_ranks)]
    rank_tokens = [0] * num_dp_ranks
    for row in longest_first:
        rank = min(range(num_dp_ranks), key=lambda rank: (rank_tokens[rank], len(rank_rows[rank]), rank))
        rank_rows[rank].append(row)
        rank_tokens[rank] += lengths[row]
    return [_first_fit(rows, lengths, max_tokens_per_micro_batch) for rows in rank_rows]


def _first_fit(rows: list[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Puts each row, longest first as given, into the first micro-batch that has room."""
    bins: list[list[int]] = []
    room: list[int] = []
    for row in rows:
        chosen = next((at for at, free in enumerate(room) if lengths[row] <= free), len(bins))
        if chosen == len(bins):
            bins.append([])
            room.append(budget)
        bins[chosen].append(row)
        room[chosen] -= lengths[row]
    return [sorted(rows_of_bin) for rows_of_bin in bins] or [[]]
