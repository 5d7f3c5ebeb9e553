"""Worked by hand: rewards 1, 0, 0, 1 have mean 1/2 and n-1 variance (4 * 1/4) / 3 = 1/3, so that the advantage of a
right completion is (1/2) / (sqrt(1/3) + eps) = 0.8660239, and of a wrong one the negative.
"""

import math
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridflow.algorithms import advantages, filters
from hybridflow.algorithms.advantages import GroupRelative, compute_group_advantages, group_rewards
from hybridflow.algorithms.algorithm import Algorithm
from hybridflow.algorithms.spec import supervised_spec
from hybridflow.types import Group
from tests.builders import build_group, build_request

REWARDS = st.lists(st.none() | st.floats(0, 1, width=32), min_size=1, max_size=12)


def algorithm(min_known_fraction: float = 0.0) -> Algorithm:
    kept = (filters.TooFewKnown(), filters.KnownShare(min_known_fraction), filters.SameReward())
    return Algorithm(kept, GroupRelative(normalise_std=True), (), supervised_spec())


def make_group(group_id: str, rewards: list[float | None]) -> Group:
    return build_group(build_request(num_completions=len(rewards), group_id=group_id), rewards)


def test_worked_by_hand() -> None:
    right = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    assert right == pytest.approx(0.8660239, abs=1e-7)
    expected = [right, -right, -right, right]
    assert compute_group_advantages([1.0, 0.0, 0.0, 1.0], normalise_std=True) == pytest.approx(expected, abs=1e-15)
    assert compute_group_advantages([1.0, 0.0, 0.0, 1.0], normalise_std=False) == [0.5, -0.5, -0.5, 0.5]


def test_unknown_is_left_out_and_is_not_zero() -> None:
    with_unknown = compute_group_advantages([1.0, None, 0.0, 1.0], normalise_std=True)
    without = compute_group_advantages([1.0, 0.0, 1.0], normalise_std=True)
    assert with_unknown == [without[0], None, *without[1:]]
    assert with_unknown != compute_group_advantages([1.0, 0.0, 0.0, 1.0], normalise_std=True)


@pytest.mark.parametrize("normalise_std", [True, False])
@pytest.mark.parametrize(
    ("rewards", "expected"),
    [([1.0], [0.0]), ([None, 1.0], [None, 0.0]), ([None], [None]), ([], []), ([0.1] * 3, [0.0] * 3)],
)
def test_without_contrast_there_is_no_advantage(
    rewards: list[float | None], expected: list[float | None], normalise_std: bool
) -> None:
    assert compute_group_advantages(rewards, normalise_std=normalise_std) == expected


@settings(deadline=None)
@given(REWARDS)
def test_float64_reference(rewards: list[float | None]) -> None:
    known = torch.tensor([reward for reward in rewards if reward is not None], dtype=torch.float64)
    got = [value for value in compute_group_advantages(rewards, normalise_std=True) if value is not None]
    if len(known) > 1 and known.max() - known.min() > advantages.SAME_REWARD:  # else exactly 0
        reference = (known - known.mean()) / (known.std() + 1e-6)
        torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), reference, rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(REWARDS, st.randoms(use_true_random=False), st.booleans())
def test_order_of_members_does_not_matter(rewards: list[float | None], random: Random, normalise_std: bool) -> None:
    order = list(range(len(rewards)))
    random.shuffle(order)
    found = compute_group_advantages(rewards, normalise_std=normalise_std)
    shuffled = compute_group_advantages([rewards[at] for at in order], normalise_std=normalise_std)
    assert shuffled == [found[at] for at in order]


def test_groups_without_contrast_are_dropped_with_their_reason() -> None:
    groups = [
        make_group("keep-1", [1.0, 0.0]),
        make_group("wrong-1", [0.0, 0.0, None]),
        make_group("right", [1.0, 1.0]),
        make_group("equal", [0.5, 0.5]),
        make_group("wrong-2", [0.0, 0.0]),
        make_group("lone", [1.0, None]),
        make_group("unknown", [None, None]),
        make_group("keep-2", [None, 0.0, 0.5]),
    ]
    kept, dropped = algorithm().filter_groups(groups)
    assert [group.group_id for group in kept] == ["keep-1", "keep-2"]
    assert dropped == {
        filters.ZERO_VARIANCE_ALL_WRONG: ["wrong-1", "wrong-2"],
        filters.ZERO_VARIANCE_ALL_RIGHT: ["right"],
        filters.ZERO_VARIANCE: ["equal"],
        filters.TOO_FEW_KNOWN: ["lone", "unknown"],
    }


def test_a_group_below_the_minimum_share_of_known_rewards_is_dropped_with_its_reason() -> None:
    groups = [
        make_group("half", [1.0, 0.0, None, None]),
        make_group("less", [1.0, 0.0, None, None, None]),
        make_group("right, as far as is known", [1.0, 1.0, None, None, None]),
        make_group("lone", [1.0, None, None]),
    ]
    kept, dropped = algorithm(0.5).filter_groups(groups)
    assert [group.group_id for group in kept] == ["half"]
    assert dropped == {
        filters.KNOWN_SHARE_TOO_LOW: ["less", "right, as far as is known"],
        filters.TOO_FEW_KNOWN: ["lone"],
    }


@settings(deadline=None)
@given(st.lists(REWARDS, max_size=8))
def test_kept_are_exactly_the_groups_with_an_advantage_that_is_not_zero(all_rewards: list[list[float | None]]) -> None:
    groups = [make_group(f"g{slot}", rewards) for slot, rewards in enumerate(all_rewards)]
    kept, dropped = algorithm().filter_groups(groups)
    carries = [g for g in groups if any(compute_group_advantages(group_rewards(g), normalise_std=False))]
    assert kept == carries
    assert len(kept) + sum(map(len, dropped.values())) == len(groups)
