"""Which groups carry a gradient.

Source: dynamic sampling of DAPO (arXiv 2503.14476): 0 < number correct < G. A group whose known rewards are all equal,
up to `advantages.SAME_REWARD`, has only zero advantages; it costs a forward and a backward pass and enlarges the loss
denominator.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def filter_groups(groups: Sequence[Group], min_known_fraction: float = 0.0) -> tuple[list[Group], dict[str, list[str]]]:
    """(kept groups, ids of the dropped ones by reason), both in the order given. Reasons without a group are absent."""
    kept: list[Group] = []
    dropped: dict[str, list[str]] = {}
    for group in groups:
        reason = _reason_to_drop(group, min_known_fraction)
        if reason is None:
            kept.append(group)
        else:
            dropped.setdefault(reason, []).append(group.group_id)
    return kept, dropped


def _reason_to_drop(group: Group, min_known_fraction: float) -> str | None:
    rewards = group_rewards(group)
    known = [reward for reward in rewards if reward is not None]
    if len(known) < MIN_KNOWN:
        return TOO_FEW_KNOWN
    if len(known) < min_known_fraction * len(rewards):
        return KNOWN_SHARE_TOO_LOW
    if not is_same_reward(known):
        return None
    if max(known) <= SAME_REWARD:
        return ZERO_VARIANCE_ALL_WRONG
    return ZERO_VARIANCE_ALL_RIGHT if min(known) >= 1 - SAME_REWARD else ZERO_VARIANCE
