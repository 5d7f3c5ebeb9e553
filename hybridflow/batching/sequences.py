"""Groups as rows of a training batch, one row per completion.

The prompt is repeated in each row; sharing it within the group is a matter of how rows are packed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hybridflow.errors import ProtocolError
from hybridflow.types import Completion, Group, ScoredCompletion, TrainSequence, Unknown


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
    )


def compute_staleness(completion: Completion, policy_version: int | None) -> list[int]:
    """[T] versions from the one that decoded each token to `policy_version`; empty where all are 0."""
    if policy_version is None or all(run.version == policy_version for run in completion.version_runs):
        return []
    return [policy_version - run.version for run in completion.version_runs for _ in range(run.num_tokens)]
