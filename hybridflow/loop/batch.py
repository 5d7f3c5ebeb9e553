"""Builds the batch of an optimizer step from groups."""

from __future__ import annotations

from collections.abc import Sequence

from hybridflow.algorithms.advantages import group_rewards
from hybridflow.algorithms.algorithm import Algorithm, build_algorithm
from hybridflow.algorithms.overlong import compute_overlong_penalty
from hybridflow.algorithms.spec import algorithm_spec
from hybridflow.batching.drawn_from import check_sampling_masks, shared_distribution
from hybridflow.batching.microbatch import plan_micro_batches
from hybridflow.batching.sequences import build_train_sequences
from hybridflow.batching.units import build_units
from hybridflow.config.sections import Config
from hybridflow.types import FilteredBatch, Group, TrainBatch, TrainSequence


def build_batch(
    groups: list[Group], config: Config, policy_version: int | None = None, algorithm: Algorithm | None = None
) -> FilteredBatch:
    """Filters, advantages, rows, mini-batches, and micro-batches over the data parallel ranks.

    Args:
        groups: Scored groups of one step.
        config: Sizes, layout and penalties.
        policy_version: The present one, from which the staleness of tokens counts.
        algorithm: None: the one that `config` says.

    Raises:
        ProtocolError: completions were drawn from different distributions, so that no temperature is that of the batch.
    """
    algorithm = algorithm or build_algorithm(algorithm_spec(config))
    kept, dropped = algorithm.filter_groups(groups)
    overlong = compute_overlong(groups, config)
    rewards = [add_overlong(group_rewards(group), overlong.get(group.group_id)) for group in kept]
    found = algorithm.advantage(kept, rewards)
    advantages = {group.group_id: of_group for group, of_group in zip(kept, found, strict=True)}
    rows_of_groups = [build_train_sequences([group], advantages, policy_version) for group in kept]
    stale = [sum(age > 0 for age in row.staleness) for rows in rows_of_groups for row in rows]
    num_tokens = sum(len(row.response) for rows in rows_of_groups for row in rows)
    if algorithm.masks:
        rows_of_groups = [algorithm.mask_rows(rows) for rows in rows_of_groups]
        for group, rows in zip(kept, rows_of_groups, strict=True):
            if not rows:
                dropped.setdefault(ALL_STALE, []).append(group.group_id)
        rows_of_groups = [rows for rows in rows_of_groups if rows]
    batch = None
    if rows_of_groups:
        sizes = split_evenly([len(rows) for rows in rows_of_groups], config.train.mini_batch_prompts)
        temperature, top_p = shared_distribution(kept)
        rows = [row for rows in rows_of_groups for row in rows]
        check_sampling_masks(rows, top_p)
        batch = plan_batch(rows, sizes, config, temperature=temperature, top_p=top_p)
    return FilteredBatch(batch, len(rows_of_groups), dropped, overlong, sum(stale), num_tokens, policy_version)


ALL_STALE = "all_stale"
"""Every token of the group was decoded by an older policy, and algorithm.mask_stale_tokens leaves these out."""


def split_evenly(rows_of_groups: Sequence[int], mini_batch_prompts: int | None) -> list[int]:
    """Rows of each mini-batch: at most `mini_batch_prompts` consecutive groups, numbers that differ by at most 1.

    Filters leave fewer groups than a step began with; a small rest at the end would be an optimizer step as large as
    the others from a few groups. None: one mini-batch.

    Example: split_evenly([8, 8, 7, 8, 8], 2) == [16, 15, 8]
    """
    num_groups = len(rows_of_groups)
    num_minis = 1 if mini_batch_prompts is None else -(-num_groups // mini_batch_prompts)
    sizes = [num_groups // num_minis + (mini < num_groups % num_minis) for mini in range(num_minis)]
    groups = iter(rows_of_groups)
    return [sum(next(groups) for _ in range(size)) for size in sizes]


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


def plan_batch(
    sequences: list[TrainSequence],
    mini_batches: Sequence[int],
    config: Config,
    *,
    temperature: float,
    top_p: float = 1.0,
) -> TrainBatch:
    """Cuts rows, in order, into mini-batches of so many, and places each on ranks, within the token budget."""
    plan = []
    first = 0
    for size in mini_batches:
        of_mini = plan_micro_batches(
            build_units(sequences[first : first + size]),
            num_dp_ranks=config.train.layout.dp,
            max_tokens_per_micro_batch=config.train.max_tokens_per_micro_batch,
        )
        plan.append([[[first + row for row in rows] for rows in of_rank] for of_rank in of_mini])
        first += size
    return TrainBatch(sequences=sequences, plan=plan, temperature=temperature, top_p=top_p)
