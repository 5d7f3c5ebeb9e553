"""Units of rows into micro-batches: balanced over data-parallel ranks, never above the token budget.

A unit is a prefix and the branches that go on from it, which are computed together, and so packed and balanced as a
whole. Today each has one branch, a row of the batch: its prompt is the prefix, its response the branch. Rows that share
a prompt could be the branches of one unit, whose prefix is then computed once; nothing makes such units yet, and
whoever packs them has to know them first.

The loss is divided by the token count of the whole step, so that the split changes time and memory and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hybridflow.errors import ConfigError
from hybridflow.types import TrainSequence


@dataclass(frozen=True)
class Unit:
    """Rows of a batch that share a prefix, with their lengths in tokens."""

    rows: tuple[int, ...]
    """Their numbers in the batch, one per branch."""
    prefix_tokens: int
    branch_tokens: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that it takes in a micro-batch: the prefix once."""
        return self.prefix_tokens + sum(self.branch_tokens)


Cost = Callable[[Unit], float]
"""The cost of a unit to the rank that computes it, in any unit of measure; ranks get about equal sums of it."""


def count_tokens(unit: Unit) -> float:
    """Cost where each token costs the same: true of short sequences, whose attention is cheap."""
    return unit.num_tokens


def build_units(sequences: Sequence[TrainSequence], first_row: int = 0) -> list[Unit]:
    """A unit of one branch for each row; rows are numbered from `first_row`."""
    return [
        Unit((row,), len(sequence.prompt_token_ids), (len(sequence.response),))
        for row, sequence in enumerate(sequences, first_row)
    ]


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
    units: Sequence[Unit], *, num_dp_ranks: int, max_tokens_per_micro_batch: int, cost: Cost = count_tokens
) -> list[list[list[int]]]:
    """plan[dp_rank][micro_batch] -> ascending row numbers. Every unit is in exactly one micro-batch, with all its rows.

    Units go costliest first to the rank with the lowest sum (ties: fewest units, then lowest rank), so that two ranks
    differ by at most the costliest unit. Within a rank, first-fit-decreasing by tokens. Equal units keep their order:
    the same input gives the same plan. A rank without units gets one empty micro-batch; ranks may differ in their
    number of micro-batches.

    Args:
        units: What is to be computed, see `build_units`.
        num_dp_ranks: Data-parallel ranks.
        max_tokens_per_micro_batch: The budget, a promise: no micro-batch has more tokens, whatever they cost.
        cost: What ranks get about equal sums of.

    Raises:
        ConfigError: a unit is above the budget; num_dp_ranks or the budget is not positive; a length is negative.

    Example: rows of 5, 3 and 2 tokens over 2 ranks with a budget of 5 give [[[0]], [[1, 2]]]
    """
    if num_dp_ranks < 1:
        raise ConfigError(f"num_dp_ranks is {num_dp_ranks}, must be at least 1")
    check_budget(0, max_tokens_per_micro_batch)
    for unit in units:
        if not 0 <= unit.num_tokens <= max_tokens_per_micro_batch:
            raise ConfigError(
                f"row {', '.join(map(str, unit.rows))} has {unit.num_tokens} tokens, {BUDGET_KEY} allows 0 to "
                f"{max_tokens_per_micro_batch}: raise {BUDGET_KEY} to {unit.num_tokens} or more, or shorten the "
                "prompts or responses"
            )
    ranks: list[list[Unit]] = [[] for _ in range(num_dp_ranks)]
    costs: list[float] = [0] * num_dp_ranks
    for unit in sorted(units, key=cost, reverse=True):  # a stable sort, also in reverse
        rank = min(range(num_dp_ranks), key=lambda rank: (costs[rank], len(ranks[rank]), rank))
        ranks[rank].append(unit)
        costs[rank] += cost(unit)
    return [_first_fit(of_rank, max_tokens_per_micro_batch) for of_rank in ranks]


def _first_fit(units: list[Unit], budget: int) -> list[list[int]]:
    """Rows by micro-batch: each unit, longest first, goes into the first that has room."""
    bins: list[list[int]] = []
    room: list[int] = []
    for unit in sorted(units, key=lambda unit: -unit.num_tokens):
        chosen = next((at for at, free in enumerate(room) if unit.num_tokens <= free), len(bins))
        if chosen == len(bins):
            bins.append([])
            room.append(budget)
        bins[chosen] += unit.rows
        room[chosen] -= unit.num_tokens
    return [sorted(rows_of_bin) for rows_of_bin in bins] or [[]]
