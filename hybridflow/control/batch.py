"""From groups to the batch of an optimizer step."""

from __future__ import annotations

from dataclasses import dataclass

from hybridflow.algorithms.advantages import compute_group_advantages, group_rewards
from hybridflow.algorithms.filters import filter_groups
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


def build_batch(groups: list[Group], config: Config, policy_version: int | None = None) -> FilteredBatch:
    """Filters, advantages within each group, rows, and micro-batches over the data parallel ranks.

    `policy_version` is the present one, from which the staleness of tokens counts.
    """
    kept, dropped = filter_groups(groups)
    if not kept:
        return FilteredBatch(None, 0, dropped)
    advantages = {
        group.group_id: compute_group_advantages(group_rewards(group), normalise_std=config.algorithm.normalise_std)
        for group in kept
    }
    sequences = build_train_sequences(kept, advantages, policy_version)
    return FilteredBatch(plan_batch(sequences, config), len(kept), dropped)


def plan_batch(sequences: list[TrainSequence], config: Config) -> TrainBatch:
    """Places rows on ranks and into micro-batches within the token budget."""
    plan = plan_micro_batches(
        [sequence.num_tokens for sequence in sequences],
        num_dp_ranks=config.train.layout.dp,
        max_tokens_per_micro_batch=config.train.max_tokens_per_micro_batch,
    )
    return TrainBatch(sequences=sequences, plan=plan)
