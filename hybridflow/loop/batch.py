"""Builds the batch of an optimizer step from groups: filters, advantages, rows, mini-batches, micro-batches.

There is one row per completion. The prompt is repeated in each; sharing it within the group is a matter of how rows are
packed.

Temperature and top-p decide the distribution that tokens were drawn from, without which log-probabilities mean nothing.
They come with each completion from the engine, and the trainer takes them from the batch, so that nothing in between
can say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from hybridflow.algorithms.advantages import group_rewards
from hybridflow.algorithms.algorithm import Algorithm, build_algorithm
from hybridflow.algorithms.overlong import compute_overlong_penalty
from hybridflow.algorithms.spec import algorithm_spec
from hybridflow.batching.microbatch import build_units, plan_micro_batches
from hybridflow.config.sections import Config, WorkerSection
from hybridflow.errors import ProtocolError
from hybridflow.types import (
    Completion,
    FilteredBatch,
    Group,
    Measured,
    MeasuredRow,
    Packed,
    ScoredCompletion,
    TrainBatch,
    TrainSequence,
    Unknown,
)

ALL_STALE = "all_stale"
"""Every token of the group was decoded by an older policy, and algorithm.mask_stale_tokens leaves these out."""
AEPO_MASKED = "aepo_masked"
"""AEPO leaves out completions of negative advantage, and the group has no other."""


def build_batch(
    groups: list[Group],
    config: Config,
    policy_version: int | None = None,
    algorithm: Algorithm | None = None,
    measured: Measured | None = None,
) -> FilteredBatch:
    """Filters, advantages, rows, mini-batches, and micro-batches over the data parallel ranks.

    Args:
        groups: Scored groups of one step.
        config: Sizes, layout and penalties.
        policy_version: The present one, from which the staleness of tokens counts.
        algorithm: None: the one that `config` says.
        measured: What the trainer has measured of the rows of `build_measured_batch`; None where nothing was asked for.

    Raises:
        ProtocolError: completions were drawn from different distributions, so that no temperature is that of the batch.
    """
    algorithm = algorithm or build_algorithm(algorithm_spec(config))
    kept, dropped = algorithm.filter_groups(groups)
    overlong = compute_overlong(groups, config)
    rewards = [add_overlong(group_rewards(group), overlong.get(group.group_id)) for group in kept]
    measured = measured or Measured()
    rewards = [subtract_prices(group, r, measured.kl_prices) for group, r in zip(kept, rewards, strict=True)]
    found = algorithm.advantage(kept, rewards)
    advantages = {group.group_id: of_group for group, of_group in zip(kept, found, strict=True)}
    rows_of_groups = [build_train_sequences([group], advantages, policy_version) for group in kept]
    stale = [sum(age > 0 for age in row.staleness) for rows in rows_of_groups for row in rows]
    num_tokens = sum(len(row.response) for rows in rows_of_groups for row in rows)
    masked_fraction = 0.0
    if measured.rows:
        rows_of_groups = [add_measured(rows, measured.rows) for rows in rows_of_groups]
    if measured.leaves_out_negative:
        num_rows = sum(map(len, rows_of_groups))
        rows_of_groups = [[row for row in rows if not row.advantage < 0] for rows in rows_of_groups]
        masked_fraction = 1 - sum(map(len, rows_of_groups)) / num_rows if num_rows else 0.0
        rows_of_groups = _without_empty(rows_of_groups, kept, dropped, AEPO_MASKED)
    if algorithm.masks:
        rows_of_groups = [algorithm.mask_rows(rows) for rows in rows_of_groups]
        rows_of_groups = _without_empty(rows_of_groups, kept, dropped, ALL_STALE)
    batch = None
    if rows_of_groups:
        sizes = split_evenly([len(rows) for rows in rows_of_groups], config.train.mini_batch_prompts)
        temperature, top_p = shared_distribution(kept)
        rows = [row for rows in rows_of_groups for row in rows]
        check_sampling_masks(rows, top_p)
        if config.algorithm.routing_replay == "engine":
            check_experts(rows)
        batch = plan_batch(rows, sizes, config.train, temperature=temperature, top_p=top_p)
    return FilteredBatch(
        batch,
        len(rows_of_groups),
        dropped,
        overlong,
        sum(stale),
        num_tokens,
        policy_version,
        measured,
        masked_fraction,
    )


def build_measured_batch(groups: list[Group], config: Config, algorithm: Algorithm | None = None) -> TrainBatch | None:
    """The rows of which `build_batch` is to know what the trainer measures: every token of every completion that has a
    verdict, of the groups that the filters keep. None where there is none. Raises as `build_batch`."""
    kept, _ = (algorithm or build_algorithm(algorithm_spec(config))).filter_groups(groups)
    known = {group.group_id: [None if r is None else 0.0 for r in group_rewards(group)] for group in kept}
    rows = build_train_sequences(kept, known)
    if not rows:
        return None
    temperature, top_p = shared_distribution(kept)
    check_sampling_masks(rows, top_p)
    if config.algorithm.routing_replay == "engine":
        check_experts(rows)
    return plan_batch(rows, [len(rows)], config.train, temperature=temperature, top_p=top_p)


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


def subtract_prices(
    group: Group, rewards: Sequence[float | None], prices: Mapping[str, float]
) -> Sequence[float | None]:
    """[G] rewards less the price of each completion's distance from the reference; as they are where nothing costs."""
    if not prices:
        return rewards
    return [
        None if reward is None else reward - prices[member.head.completion_id]
        for member, reward in zip(group.members, rewards, strict=True)
    ]


def add_measured(rows: Sequence[TrainSequence], measured: Mapping[str, MeasuredRow]) -> list[TrainSequence]:
    """The rows with what was measured of each."""
    return [msgspec.structs.replace(row, measured=measured[row.sequence_id]) for row in rows]


def _without_empty(
    rows_of_groups: list[list[TrainSequence]], kept: list[Group], dropped: dict[str, list[str]], reason: str
) -> list[list[TrainSequence]]:
    """The groups that have rows; the others go from `kept` to `dropped`."""
    for group, rows in zip(kept, rows_of_groups, strict=True):
        if not rows:
            dropped.setdefault(reason, []).append(group.group_id)
    kept[:] = [group for group, rows in zip(kept, rows_of_groups, strict=True) if rows]
    return [rows for rows in rows_of_groups if rows]


def build_train_sequences(
    groups: Sequence[Group], advantages: Mapping[str, Sequence[float | None]], policy_version: int | None = None
) -> list[TrainSequence]:
    """Rows of the kept groups, in group order and member order. The sequence id is the completion id.

    Args:
        groups: The groups that the filters kept.
        advantages: By group id, [G] advantages in member order. None leaves that member out, as for an unknown verdict.
        policy_version: The present one; None where every token is of it.

    Raises:
        ProtocolError: a group has no advantages, another number of them than members, or one for an unknown verdict.
    """
    return [
        _build_row(group, member, advantage, policy_version)
        for group in groups
        for member, advantage in zip(group.members, _advantages_of(group, advantages), strict=True)
        if advantage is not None
    ]


def _advantages_of(group: Group, advantages: Mapping[str, Sequence[float | None]]) -> Sequence[float | None]:
    found = advantages.get(group.group_id)
    if found is None or len(found) != len(group.members):
        num_found = "no" if found is None else len(found)
        raise ProtocolError(f"group {group.group_id} has {len(group.members)} members but {num_found} advantages")
    return found


def _build_row(group: Group, member: ScoredCompletion, advantage: float, policy_version: int | None) -> TrainSequence:
    completion = member.completion
    if isinstance(member.verdict, Unknown):
        raise ProtocolError(f"{completion.completion_id} has an advantage but no verdict: {member.verdict.why}")
    return TrainSequence(
        sequence_id=completion.completion_id,
        group_id=group.group_id,
        prompt_token_ids=group.prompt.token_ids,
        response=completion.tokens,
        loss_mask=[1] * len(completion.tokens),
        advantage=advantage,
        staleness=compute_staleness(completion, policy_version),
        prompt_experts=find_prompt_experts(group, completion),
    )


def compute_staleness(completion: Completion, policy_version: int | None) -> list[int]:
    """[T] versions from the one that decoded each token to `policy_version`; empty where all are 0."""
    if policy_version is None or all(run.version == policy_version for run in completion.version_runs):
        return []
    return [policy_version - run.version for run in completion.version_runs for _ in range(run.num_tokens)]


class Distribution(NamedTuple):
    """softmax(logits / temperature), over the likeliest tokens that together reach top_p."""

    temperature: float
    top_p: float


def shared_distribution(groups: Sequence[Group]) -> Distribution:
    """The one that all completions of the groups, at least one, were drawn from.

    Raises ProtocolError, naming completions and values: two differ, one does not say, or one is greedy.
    """
    heads = [member.head for group in groups for member in group.members]
    first = heads[0]
    for head in heads:
        if head.temperature is None or not head.temperature > 0:
            raise ProtocolError(
                f"completion {head.completion_id} was drawn at temperature {head.temperature}: the log-probabilities "
                "of its tokens cannot be computed. Remedy: train on completions sampled at a known temperature above 0"
            )
        if (head.temperature, head.top_p) != (first.temperature, first.top_p):
            raise ProtocolError(
                f"completions of one batch were drawn from different distributions: {first.completion_id} at "
                f"temperature {first.temperature:g} and top_p {first.top_p:g}, {head.completion_id} at "
                f"{head.temperature:g} and {head.top_p:g}. Remedy: discard what was begun before rollout.temperature "
                "or rollout.top_p changed"
            )
    assert first.temperature is not None
    return Distribution(first.temperature, first.top_p)


def check_sampling_masks(rows: Sequence[TrainSequence], top_p: float) -> None:
    """Raises ProtocolError where top-p left tokens out and a row does not say which."""
    silent = next((row for row in rows if len(row.response) and not len(row.response.sampling_mask)), None)
    if top_p < 1 and silent is not None:
        raise ProtocolError(
            f"completion {silent.sequence_id} was drawn with top_p = {top_p:g} and does not say which tokens were left "
            "in: its log-probabilities cannot be computed. Remedy: have engines return them, or set rollout.top_p = 1"
        )


def find_prompt_experts(group: Group, completion: Completion) -> Packed:
    """Find what `completion` or another of its group tells of the prompt; empty where nobody was asked.

    A completion whose teller was lost with its engine has those of the teller that was decoded in its place.

    Raises ProtocolError where it refers to one that is not there, or to itself.
    """
    heads = {member.head.completion_id: member.head for member in group.members}
    head, asked = completion, [completion.completion_id]
    while head.prompt_experts_of:
        asked.append(head.prompt_experts_of)
        if head.prompt_experts_of not in heads or len(asked) > len(heads) + 1:
            raise ProtocolError(
                f"experts of the prompt of group {group.group_id} are said to be with {' -> '.join(asked)}, which has "
                "none. Remedy: run the same hybridflow version on every node"
            )
        head = heads[head.prompt_experts_of]
    return head.prompt_experts


def check_experts(rows: Sequence[TrainSequence]) -> None:
    """Raises ProtocolError where a row does not say which experts computed each of its tokens."""
    for row in rows:
        found = len(row.prompt_experts), len(row.response.experts)
        wanted = len(row.prompt_token_ids) - 1, len(row.response)
        if found != wanted:
            raise ProtocolError(
                f"completion {row.sequence_id} says of {found[0]} + {found[1]} tokens of prompt and response which "
                f'experts computed them, and algorithm.routing_replay = "engine" needs {wanted[0]} + {wanted[1]}. '
                'Remedy: run the same hybridflow version on every node, or set algorithm.routing_replay = "off"'
            )


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


def plan_batch(
    sequences: list[TrainSequence],
    mini_batches: Sequence[int],
    worker: WorkerSection,
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
            num_dp_ranks=worker.layout.dp,
            max_tokens_per_micro_batch=worker.max_tokens_per_micro_batch,
        )
        plan.append([[[first + row for row in rows] for rows in of_rank] for of_rank in of_mini])
        first += size
    return TrainBatch(sequences=sequences, plan=plan, temperature=temperature, top_p=top_p)
