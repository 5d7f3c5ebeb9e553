"""From groups to the batch of an optimizer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hybridflow.algorithms.advantages import compute_group_advantages, group_rewards
from hybridflow.algorithms.filters import filter_groups
from hybridflow.algorithms.overlong import compute_overlong_penalty
from hybridflow.batching.microbatch import plan_micro_batches
from hybridflow.batching.sequences import build_train_sequences
from hybridflow.config.sections import Config
from hybridflow.types import Group, TrainBatch, TrainSequence


@dataclass(frozen=True)
class FilteredBatch:
    """`batch` is None where no group is left to learn from; `dropped` lists group ids by reason."""

    batch: TrainBatch | None
    num_groups: int
    dropped: dict[str, list[str]]
    overlong: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By id of each group, dropped ones included: [G] overlong penalties, 0 or below; empty where it is switched off.
    Filters saw the rewards without them, advantages come from the sums."""


def build_batch(groups: list[Group], config: Config, policy_version: int | None = None) -> FilteredBatch:
    """Filters, advantages within each group, rows, and micro-batches over the data parallel ranks.

    `policy_version` is the present one, from which the staleness of tokens counts.
    """
    kept, dropped = filter_groups(groups)
    overlong = compute_overlong(groups, config)
    if not kept:
        return FilteredBatch(None, 0, dropped, overlong)
    advantages = {
        group.group_id: compute_group_advantages(
            add_overlong(group_rewards(group), overlong.get(group.group_id)),
            normalise_std=config.algorithm.normalise_std,
        )
        for group in kept
    }
    sequences = build_train_sequences(kept, advantages, policy_version)
    return FilteredBatch(plan_batch(sequences, config), len(kept), dropped, overlong)


def compute_overlong(groups: list[Group], config: Config) -> dict[str, list[float]]:
    """By group id, [G] overlong penalties; empty where they are switched off."""
    section = config.reward.overlong
    if section.buffer_tokens == 0:
        return {}
    return {
        group.group_id: [
            compute_overlong_penalty(
                member.num_tokens,
                config.rollout.max_new_tokens,
                section.buffer_tokens,
                section.penalty_factor,
            )
            for member in group.members
        ]
        for group in groups
    }


def add_overlong(rewards: Sequence[float | None], penalties: Sequence[float] | None) -> list[float | None]:
    """[G] rewards with the penalty of each; unknown stays unknown."""
    if penalties is None:
        return list(rewards)
    return [None if r is None else r + penalty for r, penalty in zip(rewards, penalties, strict=True)]


def plan_batch(sequences: list[TrainSequence], config: Config) -> TrainBatch:
    """Places rows on ranks and into micro-batches within the token budget."""
    plan = plan_micro_batches(
        [sequence.num_tokens for sequence in sequences],
        num_dp_ranks=config.train.layout.dp,
        max_tokens_per_micro_batch=config.train.max_tokens_per_micro_batch,
    )
    return TrainBatch(sequences=sequences, plan=plan)
