"""Filters of groups that carry no gradient.

Source: dynamic sampling of DAPO (arXiv 2503.14476): 0 < number correct < G. A group whose known rewards are all equal,
up to SAME_REWARD, has only zero advantages; it costs a forward and a backward pass and enlarges the loss denominator.
"""

from __future__ import annotations

from dataclasses import dataclass

from hybridflow.algorithms.advantages import SAME_REWARD, group_rewards, is_same_reward
from hybridflow.types import Group

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
