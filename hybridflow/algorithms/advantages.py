"""Advantages relative to the group, and filters of groups that carry no gradient and of tokens of older policies.

Advantages. Source: GRPO, QwenLong-L1 paper (arXiv 2505.17667) Eq. 5; constants as released (recipe section 5): (r -
mean) / (std + 1e-6) with the n-1 standard deviation of torch.std. Without the division it is the advantage of Dr. GRPO
(2503.20783). Deviations: a group with one known reward gets 0 (the released code takes mean 0 and std 1 there, which
gives the reward itself), and unknown rewards are left out.

Filters. Source: dynamic sampling of DAPO (arXiv 2503.14476): 0 < number correct < G. A group whose known rewards are
all equal, up to SAME_REWARD, has only zero advantages; it costs a forward and a backward pass and enlarges the loss
denominator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hybridflow.types import Group, Scored, TrainSequence

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


@dataclass(frozen=True)
class FreshTokens:
    """Leaves out tokens that an older policy decoded (`algorithm.mask_stale_tokens`)."""

    def __call__(self, row: TrainSequence) -> list[int]:
        if not row.staleness:
            return row.loss_mask
        return [mask * int(age == 0) for mask, age in zip(row.loss_mask, row.staleness, strict=True)]


ZERO_VARIANCE_ALL_WRONG = "zero_variance_all_wrong"
"""Every known reward is 0: the prompt is too hard for now."""
ZERO_VARIANCE_ALL_RIGHT = "zero_variance_all_right"
"""Every known reward is 1: nothing left to learn here."""
ZERO_VARIANCE = "zero_variance"
"""Every known reward is the same, and neither 0 nor 1."""
TOO_FEW_KNOWN = "too_few_known"
"""Fewer than two rewards are known: no statistics."""
KNOWN_SHARE_TOO_LOW = "known_share_too_low"
"""Less than the minimum share of its rewards is known. Those that are not are no random part of the group: only answers
that a rule thought wrong are left to a judge, and a judge that fails leaves those that the rule thought right."""

MIN_KNOWN = 2


@dataclass(frozen=True)
class TooFewKnown:
    """Leaves out groups with fewer than two known rewards."""

    def __call__(self, group: Group) -> str | None:
        return TOO_FEW_KNOWN if len(_known(group)) < MIN_KNOWN else None


@dataclass(frozen=True)
class KnownShare:
    """Leaves out groups of which less than `min_known_fraction` of the rewards is known."""

    min_known_fraction: float

    def __call__(self, group: Group) -> str | None:
        return KNOWN_SHARE_TOO_LOW if len(_known(group)) < self.min_known_fraction * len(group.members) else None


@dataclass(frozen=True)
class SameReward:
    """Leaves out groups whose known rewards are equal."""

    def __call__(self, group: Group) -> str | None:
        known = _known(group)
        if not known:
            return TOO_FEW_KNOWN
        if not is_same_reward(known):
            return None
        if max(known) <= SAME_REWARD:
            return ZERO_VARIANCE_ALL_WRONG
        return ZERO_VARIANCE_ALL_RIGHT if min(known) >= 1 - SAME_REWARD else ZERO_VARIANCE


def _known(group: Group) -> list[float]:
    return [reward for reward in group_rewards(group) if reward is not None]
