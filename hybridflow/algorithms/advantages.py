"""Advantages: how much better a completion is than others, by its reward. One class each; none looks at tokens.

For all of them: unknown rewards enter no mean and no deviation and get None back, and a group whose known rewards are
equal (one alone among them) has exactly zero advantages. Means and deviations over the step are over all groups that
filters kept, before they are cut into mini-batches and micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hybridflow.types import Group, Scored

EPS = 1e-6
"""Added to a standard deviation before dividing by it; as in the code that QwenLong-L1 released."""
SAME_REWARD = 1e-6
"""Rewards of a group that differ by no more are equal: sums of floats are not exact, and a division by their tiny
deviation would make a full advantage of a rounding error."""


def group_rewards(group: Group) -> list[float | None]:
    """[G] rewards in member order; None where the verdict is unknown."""
    return [member.verdict.value if isinstance(member.verdict, Scored) else None for member in group.members]


def is_same_reward(known: Sequence[float]) -> bool:
    """Whether rewards, at least one, differ by at most SAME_REWARD."""
    return max(known) - min(known) <= SAME_REWARD


def compute_group_advantages(
    rewards: Sequence[float | None], *, normalise_std: bool, eps: float = EPS
) -> list[float | None]:
    """[G] advantage of each member of one group.

    Args:
        rewards: [G] rewards; None is unknown: it enters neither mean nor deviation, and gets None back.
        normalise_std: Divide by the group's standard deviation (n-1) + eps.
        eps: Keeps the division finite; a group of equal rewards (see SAME_REWARD) gets exactly 0.

    Example: compute_group_advantages([1.0, 0.0, None], normalise_std=False) == [0.5, -0.5, None]
    """
    known = [reward for reward in rewards if reward is not None]
    if not known or is_same_reward(known):
        return [None if reward is None else 0.0 for reward in rewards]
    mean = math.fsum(known) / len(known)
    scale = 1.0
    if normalise_std:
        variance = math.fsum((reward - mean) ** 2 for reward in known) / (len(known) - 1)
        scale = math.sqrt(variance) + eps
    return [None if reward is None else (reward - mean) / scale for reward in rewards]


Rewards = Sequence[Sequence[float | None]]
Advantages = list[list[float | None]]


@dataclass(frozen=True)
class GroupRelative:
    """GRPO (arXiv 2402.03300 section 4.1.2, 2505.17667 Eq. 5): (r - mean) / (std + 1e-6), both of the group.

    The deviation is that of torch.std (n-1), as released. Deviation from it: a group with one known reward gets 0; the
    released code takes mean 0 and deviation 1 there, which gives the reward itself.
    """

    normalise_std: bool

    def __call__(self, groups: Sequence[Group], rewards: Rewards) -> Advantages:
        return [compute_group_advantages(of_group, normalise_std=self.normalise_std) for of_group in rewards]


@dataclass(frozen=True)
class DrGRPO:
    """Dr. GRPO (arXiv 2503.20783): r - mean of the group, without a division.

    The other half of it is the aggregation `constant`.
    """

    def __call__(self, groups: Sequence[Group], rewards: Rewards) -> Advantages:
        return [center(of_group) for of_group in rewards]


@dataclass(frozen=True)
class LeaveOneOut:
    """RLOO (arXiv 2402.14740): r - mean of the other rewards of the group.

    That is (r - mean) n / (n - 1) with n known rewards. Where the paper has no value, for a group with one known
    reward, it is 0.
    """

    def __call__(self, groups: Sequence[Group], rewards: Rewards) -> Advantages:
        return [self._of_group(of_group) for of_group in rewards]

    @staticmethod
    def _of_group(rewards: Sequence[float | None]) -> list[float | None]:
        num_known = sum(reward is not None for reward in rewards)
        return _scale(center(rewards), num_known / max(num_known - 1, 1))


@dataclass(frozen=True)
class BatchNormalised:
    """REINFORCE++ with the group's mean as its baseline (arXiv 2501.03262, "REINFORCE++-baseline").

        a = r - mean of the group;   A = (a - mean of a) / (std of a + 1e-6), both over all completions of the step

    Deviations: the mean of a is 0 by construction, so it is not subtracted and equal rewards stay at exactly 0; verl
    (`compute_reinforce_plus_plus_baseline_outcome_advantage`) takes mean and deviation over tokens, which weighs long
    completions more, the paper over completions, as here. The deviation is n-1, and of the groups that filters kept.
    """

    def __call__(self, groups: Sequence[Group], rewards: Rewards) -> Advantages:
        centered = [center(of_group) for of_group in rewards]
        scale = 1 / (_deviation([a for of_group in centered for a in of_group if a is not None]) + EPS)
        return [_scale(of_group, scale) for of_group in centered]


@dataclass(frozen=True)
class TaskNormalised:
    """QwenLong-L1.5 (arXiv 2512.12967, task-specific advantage estimation):

        (r - mean of the group) / (std of r over all completions of its task in the step + 1e-6)

    A task is a `data_source`. The deviation is n-1 as for groups, and of the known rewards of the groups that filters
    kept: the paper does not say whether groups without variance count in it.
    """

    def __call__(self, groups: Sequence[Group], rewards: Rewards) -> Advantages:
        by_task: dict[str, list[float]] = {}
        for group, of_group in zip(groups, rewards, strict=True):
            known = by_task.setdefault(group.prompt.data_source, [])
            known += [reward for reward in of_group if reward is not None]
        scales = {task: 1 / (_deviation(known) + EPS) for task, known in by_task.items()}
        return [
            _scale(center(of_group), scales[group.prompt.data_source])
            for group, of_group in zip(groups, rewards, strict=True)
        ]


def center(rewards: Sequence[float | None]) -> list[float | None]:
    """[G] rewards of a group minus their mean; exactly 0 where all are equal."""
    return compute_group_advantages(rewards, normalise_std=False)


def _scale(values: Sequence[float | None], factor: float) -> list[float | None]:
    return [None if value is None else value * factor for value in values]


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation (n-1); 0 of fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
