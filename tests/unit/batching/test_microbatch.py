"""The plan keeps its promises for any rows: every row once, never above the budget, balanced, the same each time."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridflow.batching.microbatch import Unit, check_budget, plan_micro_batches
from hybridflow.errors import ConfigError

ROWS = st.lists(st.integers(1, 100), max_size=40)
RANKS = st.integers(1, 6)
BUDGET = st.integers(100, 300)


def units(lengths: list[int]) -> list[Unit]:
    """Units of one branch each, half of it prompt."""
    return [Unit((row,), length // 2, (length - length // 2,)) for row, length in enumerate(lengths)]


def test_worked_by_hand() -> None:
    """Longest first: 9 -> rank 0, 8 -> rank 1, 5 -> rank 1 (8 < 9), 4 -> rank 0, 2 -> rank 0 (tie 13), 1 -> rank 1.

    Rank 0 holds 9, 4, 2: at a budget of 10, 9 | 4 2. Rank 1 holds 8, 5, 1: 8 1 | 5.
    """
    plan = plan_micro_batches(units([1, 9, 2, 8, 4, 5]), num_dp_ranks=2, max_tokens_per_micro_batch=10)
    assert plan == [[[1], [2, 4]], [[0, 3], [5]]]


def test_no_rows_give_every_rank_an_empty_micro_batch() -> None:
    assert plan_micro_batches(units([]), num_dp_ranks=3, max_tokens_per_micro_batch=1) == [[[]], [[]], [[]]]
    assert plan_micro_batches(units([7]), num_dp_ranks=2, max_tokens_per_micro_batch=7) == [[[0]], [[]]]


def test_rows_of_a_unit_stay_together_and_its_prefix_takes_room_once() -> None:
    """Three answers of 2 tokens to a prompt of 10 take 16 tokens, and leave room for 4 of 20."""
    group = Unit((0, 1, 2), 10, (2, 2, 2))
    alone = [Unit((3,), 3, (1,)), Unit((4,), 3, (2,))]
    assert plan_micro_batches([group, *alone], num_dp_ranks=1, max_tokens_per_micro_batch=20) == [[[0, 1, 2, 3], [4]]]
    with pytest.raises(ConfigError, match="row 0, 1, 2 has 16 tokens, max_tokens_per_micro_batch allows 0 to 15"):
        plan_micro_batches([group], num_dp_ranks=1, max_tokens_per_micro_batch=15)


def test_ranks_are_balanced_by_cost_and_micro_batches_filled_by_tokens() -> None:
    """At the square of its tokens a row of 8 costs as much as four of 4: by tokens each rank would have two of them."""
    plan = plan_micro_batches(
        units([4, 8, 4, 4, 4]), num_dp_ranks=2, max_tokens_per_micro_batch=8, cost=lambda unit: unit.num_tokens**2
    )
    assert plan == [[[1]], [[0, 2], [3, 4]]]


def test_equal_rows_are_dealt_in_order() -> None:
    plan = plan_micro_batches(units([5] * 6), num_dp_ranks=2, max_tokens_per_micro_batch=10)
    assert plan == [[[0, 2], [4]], [[1, 3], [5]]]


@settings(deadline=None)
@given(ROWS, RANKS, BUDGET)
def test_every_row_is_in_exactly_one_micro_batch_within_the_budget(rows: list[int], ranks: int, budget: int) -> None:
    plan = plan_micro_batches(units(rows), num_dp_ranks=ranks, max_tokens_per_micro_batch=budget)
    assert len(plan) == ranks and all(plan)
    assert sorted(row for rank in plan for batch in rank for row in batch) == list(range(len(rows)))
    for rank in plan:
        assert all(sum(rows[row] for row in batch) <= budget for batch in rank)
        assert all(rank) or rank == [[]]  # empty only where the rank has no rows


@settings(deadline=None)
@given(ROWS, RANKS, BUDGET)
def test_ranks_differ_by_at_most_the_longest_row(rows: list[int], ranks: int, budget: int) -> None:
    plan = plan_micro_batches(units(rows), num_dp_ranks=ranks, max_tokens_per_micro_batch=budget)
    tokens = [sum(rows[row] for batch in rank for row in batch) for rank in plan]
    assert max(tokens) - min(tokens) <= max(rows, default=0)


@settings(deadline=None)
@given(ROWS, RANKS, BUDGET)
def test_no_two_micro_batches_of_a_rank_would_fit_into_one(rows: list[int], ranks: int, budget: int) -> None:
    for rank in plan_micro_batches(units(rows), num_dp_ranks=ranks, max_tokens_per_micro_batch=budget):
        tokens = sorted(sum(rows[row] for row in batch) for batch in rank)
        assert len(tokens) < 2 or tokens[0] + tokens[1] > budget


@settings(deadline=None)
@given(ROWS, RANKS, BUDGET, st.randoms(use_true_random=False))
def test_the_load_of_ranks_does_not_depend_on_the_order_of_rows(
    rows: list[int], ranks: int, budget: int, random: Random
) -> None:
    def loads(lengths: list[int]) -> list[list[int]]:
        plan = plan_micro_batches(units(lengths), num_dp_ranks=ranks, max_tokens_per_micro_batch=budget)
        return [[sum(lengths[row] for row in batch) for batch in rank] for rank in plan]

    shuffled = list(rows)
    random.shuffle(shuffled)
    assert loads(rows) == loads(rows) == loads(shuffled)


@settings(deadline=None)
@given(ROWS, st.integers(0, 40), st.integers(1, 50), RANKS, BUDGET)
def test_a_row_above_the_budget_is_named_with_both_numbers(
    rows: list[int], at: int, excess: int, ranks: int, budget: int
) -> None:
    at = min(at, len(rows))
    too_long = [*rows[:at], budget + excess, *rows[at:]]
    with pytest.raises(ConfigError, match=rf"row {at} has {budget + excess} tokens.* {budget}: raise max_tokens"):
        plan_micro_batches(units(too_long), num_dp_ranks=ranks, max_tokens_per_micro_batch=budget)


def test_the_budget_is_checked_before_the_run() -> None:
    check_budget(100, 100)
    with pytest.raises(ConfigError, match=r"101 tokens.* = 100: raise max_tokens_per_micro_batch to 101 or more"):
        check_budget(101, 100)
    with pytest.raises(ConfigError, match="is 0, must be at least 1"):
        check_budget(0, 0)


@pytest.mark.parametrize(
    ("lengths", "ranks", "budget"), [([1], 0, 10), ([1], 1, 0), ([-1], 1, 10)], ids=["ranks", "budget", "length"]
)
def test_numbers_that_make_no_sense_are_refused(lengths: list[int], ranks: int, budget: int) -> None:
    with pytest.raises(ConfigError):
        plan_micro_batches(units(lengths), num_dp_ranks=ranks, max_tokens_per_micro_batch=budget)
