"""Every batch within one row of each task's share, whatever the sizes of tasks and batches."""

from __future__ import annotations

import json
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridflow.curriculum.task_balance import TaskBalance
from tests.builders import build_prompt

SIZES = {"big": 80, "middle": 10, "small": 10}
PROMPTS = [build_prompt(f"{task}-{n}", data_source=task) for task, size in SIZES.items() for n in range(size)]
OF_ROWS, OTHERS = {"big": 8, "middle": 1, "small": 1}, {"big": 0.5, "middle": 0.3, "small": 0.2}


def balance(shares: dict[str, float] | None = None, seed: int = 0) -> TaskBalance:
    return TaskBalance(PROMPTS, ("hybridflow.order", seed), shares)


def tasks_of(source: TaskBalance, number: int) -> Counter[str]:
    return Counter(prompt.data_source for prompt in source.next(number))


@pytest.mark.parametrize("shares", [None, OF_ROWS, OTHERS])
@pytest.mark.parametrize("size", [1, 4, 7, 10, 16, 128])
def test_sources_of_8_to_1_to_1_rows(shares: dict[str, float] | None, size: int) -> None:
    source, total = balance(shares), sum(shares.values()) if shares else 3
    seen = Counter[str]()
    for number in range(1, 41):
        batch = tasks_of(source, size)
        seen += batch
        for task in SIZES:
            share = shares[task] / total if shares else 1 / 3
            assert abs(batch[task] - size * share) < 1  # within one row of this batch
            assert abs(seen[task] - number * size * share) < 1  # and of all of them together


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8), st.lists(st.integers(0, 40), max_size=8), st.integers(0, 3)
)
def test_each_batch_rounds_each_share_down_or_up(weights: list[int], sizes: list[int], seed: int) -> None:
    shares = {f"t{n}": weight for n, weight in enumerate(weights)}
    prompts = [build_prompt(f"{task}-{n}", data_source=task) for task in shares for n in range(1 + n_of(task))]
    source = TaskBalance(prompts, ("s", seed), shares)
    for size in sizes:
        batch = tasks_of(source, size)
        assert sum(batch.values()) == size
        assert all(abs(batch[task] - size * share / sum(weights)) < 1 for task, share in shares.items())


def n_of(task: str) -> int:
    return int(task[1:])


def test_a_task_walks_through_its_rows_in_epochs() -> None:
    """A small task of ten rows with a third of thirty prompts has each row once."""
    source = balance()
    for _ in range(3):
        of_small = [p.prompt_id for p in source.next(30) if p.data_source == "small"]
        assert len(of_small) == len(set(of_small)) == 10


def test_tasks_are_mixed_within_a_batch_by_the_seed() -> None:
    orders = [[p.data_source for p in balance(seed=seed).next(30)] for seed in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1] and orders[0] != sorted(orders[0])


def test_a_replacement_is_of_the_same_task_and_is_not_in_the_balance() -> None:
    """A task that needs many tries is owed no less: the tasks of batches are those of a walk without any."""
    source, straight = balance(OF_ROWS), balance(OF_ROWS)
    for _ in range(12):
        batch = source.next(7)
        assert [p.data_source for p in batch] == [p.data_source for p in straight.next(7)]
        hard = [prompt for prompt in batch if prompt.data_source != "big"] * 3
        assert [p.data_source for p in source.replace(hard)] == [p.data_source for p in hard]


def test_a_replacement_is_the_next_one_of_its_task() -> None:
    source = balance()
    batch = [p for p in source.next(15) if p.data_source == "small"]
    assert len({p.prompt_id for p in [*batch, *source.replace(batch)]}) == 10  # the whole epoch
    assert len({p.prompt_id for p in source.replace([*batch, *batch])}) == 10


def test_a_prompt_of_another_task_is_replaced_by_what_is_next() -> None:
    source, straight = balance(), balance()
    assert source.replace([build_prompt("x", data_source="other")]) == straight.next(1)
    assert source.state_dict() == straight.state_dict()


def test_resumed_at_any_of_50_points_it_hands_out_the_same() -> None:
    shares = OTHERS
    source, sizes = balance(shares), [1 + Random(step).randrange(9) for step in range(60)]
    saved, walk = [], []
    for size in sizes:
        saved.append(json.dumps(source.state_dict()))
        walk.append(take(source, size))
    for step in Random(2).sample(range(60), 50):
        again = balance(shares)
        again.load_state_dict(json.loads(saved[step]))
        assert [take(again, size) for size in sizes[step:]] == walk[step:], step


def take(source: TaskBalance, size: int) -> list[str]:
    """A batch, and what replaces every third of it."""
    batch = source.next(size)
    return [prompt.prompt_id for prompt in [*batch, *source.replace(batch[::3])]]


def test_a_share_of_0_leaves_a_task_out() -> None:
    assert tasks_of(balance({"big": 1, "middle": 1, "small": 0}), 8) == {"big": 4, "middle": 4}


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"big": 1, "middle": 1, "small": 1, "math": 1}, "tasks math have a share and no row; rows are of big, middle"),
        ({"big": 1}, "rows of middle, small have no share"),
        ({"big": -1, "middle": 1, "small": 1}, r"shares of tasks {'big': -1} are none"),
        ({"big": float("inf"), "middle": 1, "small": 1}, "are none"),
        ({"big": 0, "middle": 0, "small": 0}, "no task has a share"),
    ],
)
def test_shares_that_do_not_fit_the_rows_are_refused(shares: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=f"{said}.*Remedy: "):
        balance(shares)


@pytest.mark.parametrize("key", ["num_taken", "num_replaced"])
@pytest.mark.parametrize("changed", [None, {"big": 1}, {"big": -1, "middle": 0, "small": 0}, dict.fromkeys(SIZES, 0.5)])
def test_a_state_that_is_none_is_refused(key: str, changed: Any) -> None:
    source = balance()
    with pytest.raises(ValueError, match=f"expected '{key}': numbers of "):
        source.load_state_dict(source.state_dict() | {key: changed})
