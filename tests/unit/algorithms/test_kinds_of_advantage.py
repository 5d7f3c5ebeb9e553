"""Derivation, for two groups of one task, rewards 1, 0, 0, 1 and 1, 0, 0, 0:

    dr_grpo: 1/2, -1/2, -1/2, 1/2 and 3/4, -1/4, -1/4, -1/4
    rloo: the same times 4/3, as r - (sum - r) / 3 = (4 r - sum) / 3 = 4/3 (r - sum / 4)
    reinforce_pp: squares add up to 4/4 + 9/16 + 3/16 = 7/4 with mean 0, so the n-1 deviation is sqrt(1/4) = 1/2
    task_std: 3 right of 8, mean 3/8, squares 3 * 25/64 + 5 * 9/64 = 15/8, so the deviation is sqrt(15/56)

Cannot catch: a paper that says otherwise than the docstrings.
"""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridflow.algorithms.advantages import SAME_REWARD
from hybridflow.algorithms.registry import ADVANTAGES
from hybridflow.types import Group
from tests.builders import build_group, build_prompt, build_request

KINDS = ["group_relative", "dr_grpo", "rloo", "reinforce_pp", "task_std"]
STEPS = st.lists(
    st.tuples(st.sampled_from("ab"), st.lists(st.none() | st.floats(0, 1, width=32), min_size=1, max_size=5)),
    min_size=1,
    max_size=5,
)
Rewards = list[list[float | None]]


def compute(kind: str, rewards: Rewards, tasks: str | None = None) -> Rewards:
    """`kind` of groups with these rewards, each of the task that its letter names."""
    advantage = ADVANTAGES.build(kind, {"normalise_std": True})
    groups = [make_group(task, of_group) for task, of_group in zip(tasks or "a" * len(rewards), rewards, strict=True)]
    return advantage(groups, rewards)


def make_group(task: str, rewards: list[float | None]) -> Group:
    return build_group(build_request(build_prompt(data_source=task), len(rewards)), rewards)


def test_every_registered_advantage_is_tried_here() -> None:
    assert {name for name in ADVANTAGES.names if not name.startswith("toy_")} == set(KINDS)


@pytest.mark.parametrize(
    ("kind", "factor"),
    [("dr_grpo", 1.0), ("rloo", 4 / 3), ("reinforce_pp", 1 / (0.5 + 1e-6)), ("task_std", 1 / (15 / 56) ** 0.5)],
)
def test_worked_by_hand(kind: str, factor: float) -> None:
    centered = [[0.5, -0.5, -0.5, 0.5], [0.75, -0.25, -0.25, -0.25]]
    got = compute(kind, [[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    assert got == [pytest.approx([factor * one for one in of_group], rel=3e-6) for of_group in centered]


def test_each_task_has_its_own_deviation() -> None:
    """Task a is worth 10, task b 1: after the division by their own deviations they count alike."""
    step: Rewards = [[10.0, 0.0, 0.0, 10.0], [1.0, 0.0, 0.0, 1.0], [10.0, 0.0, 0.0, 10.0]]
    of_rich, of_poor, again = compute("task_std", step, "aba")
    assert of_rich == again and of_rich[0] == pytest.approx(5 / math.sqrt(8 * 25 / 7), rel=1e-6)
    assert of_poor[0] == pytest.approx(0.5 / math.sqrt(1 / 3), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_without_contrast_there_is_no_advantage(kind: str) -> None:
    """A single member, an unknown one, equal rewards (0.1 * 3 is no exact sum), nothing known; beside a real group."""
    odd: Rewards = [[1.0], [None, 1.0], [0.1, 0.1, 0.1], [None, None], []]
    zeros = [[0.0], [None, 0.0], [0.0, 0.0, 0.0], [None, None], []]
    assert compute(kind, odd) == zeros
    assert compute(kind, [*odd, [1.0, None, 0.0]])[:5] == zeros
    last = compute(kind, [*odd, [1.0, None, 0.0]])[5]
    assert last[1] is None and last[0] is not None and last[0] > 0 and last[2] == pytest.approx(-last[0])
    assert compute(kind, []) == []


def reference(kind: str, step: list[tuple[str, list[float | None]]]) -> list[list[float | None]]:
    """By the papers, in float64 torch; of groups without contrast 0."""

    def known(of_group: list[float | None]) -> torch.Tensor:
        return torch.tensor([r for r in of_group if r is not None], dtype=torch.float64)

    def is_flat(r: torch.Tensor) -> bool:
        return len(r) < 2 or bool(r.max() - r.min() <= SAME_REWARD)

    def std(values: list[torch.Tensor]) -> Any:
        joined = torch.cat(values)
        return joined.std() if len(joined) > 1 else torch.tensor(0.0)

    everything = [r - r.mean() if not is_flat(r) else r * 0 for _, of_group in step if len(r := known(of_group))]
    found: list[list[float | None]] = []
    for task, of_group in step:
        r = known(of_group)
        if is_flat(r):
            a = r * 0
        elif kind == "group_relative":
            a = (r - r.mean()) / (r.std() + 1e-6)
        elif kind == "dr_grpo":
            a = r - r.mean()
        elif kind == "rloo":
            a = torch.stack([r[i] - torch.cat([r[:i], r[i + 1 :]]).mean() for i in range(len(r))])
        elif kind == "reinforce_pp":
            a = (r - r.mean()) / (std(everything) + 1e-6)
        else:
            a = (r - r.mean()) / (std([known(other) for name, other in step if name == task]) + 1e-6)
        values = iter(a.tolist())
        found.append([None if reward is None else next(values) for reward in of_group])
    return found


@settings(deadline=None, max_examples=60)
@given(STEPS, st.randoms(use_true_random=False))
def test_float64_reference_and_order_of_groups(step: list[tuple[str, list[float | None]]], random: Random) -> None:
    order = list(range(len(step)))
    random.shuffle(order)
    mixed = [step[at] for at in order]
    for kind in KINDS:
        got = compute(kind, [r for _, r in step], "".join(task for task, _ in step))
        expected = reference(kind, step)
        for one, other in zip(got, expected, strict=True):
            assert one == [None if value is None else pytest.approx(value, rel=1e-9, abs=1e-9) for value in other]
        shuffled = compute(kind, [r for _, r in mixed], "".join(task for task, _ in mixed))
        assert shuffled == [got[at] for at in order], kind
