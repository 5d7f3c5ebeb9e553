"""Advantages relative to the group.

Source: GRPO, QwenLong-L1 paper (arXiv 2505.17667) Eq. 5; constants as released (recipe section 5): (r - mean) / (std +
1e-6) with the n-1 standard deviation of torch.std. Without the division it is the advantage of Dr. GRPO (2503.20783).
Deviations: a group with one known reward gets 0 (the released code takes mean 0 and std 1 there, which gives the reward
itself), and unknown rewards are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hybridflow.types import Group, Scored

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
    rewards: Sequence[float | None], *, normalise_std: bool, eps: float = 1e-6
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


@dataclass(frozen=True)
class GroupRelative:
    """Each reward against those of its own group, see `compute_group_advantages`."""

    normalise_std: bool

    def __call__(self, groups: Sequence[Group], rewards: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
        return [compute_group_advantages(of_group, normalise_std=self.normalise_std) for of_group in rewards]
