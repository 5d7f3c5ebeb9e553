"""Partial rollouts: what is kept of groups that outlive their step, and how the next step begins. Pure.

With `rollout.over_sampling` above 1 a step begins more groups than it trains on and ends when enough are complete. The
others are carried over, as far as they are:

    step k      carried groups, oldest first, then the source's next prompts   --->  `num_begun` groups
                the first `num_needed` complete ones are trained on            --->  the rest is carried over
    step k + 1  ...

So every prompt that was taken is either in the batch of a step or carried. A group of which any token would be older
than `max_staleness` versions is discarded as a whole: its prompt begins again, in the same place, under an id of the
new step, but with the seeds of its first begin. With fresh seeds a long completion would be drawn again and again until
a short one ends in time, and the policy would see lengths that it did not choose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hybridflow.config.rollout_section import RolloutSection
from hybridflow.errors import CheckpointError
from hybridflow.types import Completion, GroupRequest, PartialGroup, Prompt, ScoredCompletion, StepCounts, Verdict

PARTIAL_GROUPS_FILE = "carried.msgpack"
"""In a checkpoint, beside state.json; absent where nothing is carried."""


@dataclass(frozen=True)
class StepPlan:
    """Requests of a step, and when it has enough."""

    requests: list[GroupRequest]
    """In the order in which groups are trained on, where more are complete than needed."""
    kept: dict[str, list[ScoredCompletion]]
    """By group id: members that ended in earlier steps."""
    num_needed: int
    """Complete groups with which the step ends."""
    counts: StepCounts


@dataclass(frozen=True)
class PartialRollouts:
    """Rules of a step that begins more groups than it trains on."""

    num_needed: int
    num_begun: int
    """Groups under way when a step begins, carried ones included."""
    max_staleness: int
    """Most policy versions between the one that decoded a token and the one that the step began with."""

    @classmethod
    def of(cls, section: RolloutSection, prompts_per_step: int) -> PartialRollouts:
        """To discard what was begun is to allow no older version."""
        return cls(
            num_needed=prompts_per_step,
            num_begun=math.ceil(round(prompts_per_step * section.over_sampling, 6)),
            max_staleness=section.max_staleness if section.partial == "resume" else 0,
        )

    def num_fresh(self, num_carried: int) -> int:
        """Prompts that the next step takes from the source."""
        return self.num_begun - num_carried

    def plan(
        self, prefix: str, carried: Sequence[PartialGroup], fresh: Iterable[Prompt], version: int, num_completions: int
    ) -> StepPlan:
        """The step that policy `version` decodes; new groups are `<prefix>-g0000`, `<prefix>-g0001`, ..."""
        requests: list[GroupRequest] = []
        kept: dict[str, list[ScoredCompletion]] = {}
        discarded: list[PartialGroup] = []
        num_resumed = 0
        for group in carried:
            oldest = group.oldest_version
            if oldest is not None and version - oldest > self.max_staleness:
                discarded.append(group)
                continue
            num_resumed += oldest is not None
            kept[group.group_id] = group.members
            requests.append(
                GroupRequest(
                    group_id=group.group_id,
                    prompt=group.prompt,
                    num_completions=group.num_completions,
                    done=[member.head.index for member in group.members],
                    partials=group.partials,
                    seed_id=group.seed_id,
                )
            )
        new = build_requests(prefix, [*(group.prompt for group in discarded), *fresh], num_completions)
        for slot, group in enumerate(discarded):
            new[slot] = msgspec.structs.replace(new[slot], seed_id=group.seed_id or group.group_id)
        counts = StepCounts(
            num_started=len(new),
            num_resumed=num_resumed,
            num_discarded=len(discarded),
            discarded_tokens=sum(group.num_tokens for group in discarded),
            num_discarded_completions=sum(len(group.members) + len(group.partials) for group in discarded),
        )
        return StepPlan(requests + new, kept, self.num_needed, counts)


def plan_all(requests: list[GroupRequest]) -> StepPlan:
    """Every group is needed."""
    return StepPlan(requests, {}, len(requests), StepCounts(len(requests)))


def build_requests(prefix: str, prompts: Sequence[Prompt], num_completions: int, first: int = 0) -> list[GroupRequest]:
    """One group per prompt, with ids `<prefix>-g0000`, `<prefix>-g0001`, ..., or from `first` on."""
    return [
        GroupRequest(group_id=f"{prefix}-g{slot:04d}", prompt=prompt, num_completions=num_completions)
        for slot, prompt in enumerate(prompts, first)
    ]


class _Member(msgspec.Struct, frozen=True, kw_only=True):
    """A ScoredCompletion in a checkpoint."""

    completion: Completion
    verdict: Verdict
    scored_by: str


def _encode_member(member: ScoredCompletion) -> _Member:
    return _Member(completion=member.completion, verdict=member.verdict, scored_by=member.scored_by)


def _decode_member(_: type, fields: dict[str, Any]) -> ScoredCompletion:
    member = msgspec.convert(fields, _Member)
    return ScoredCompletion(completion=member.completion, verdict=member.verdict, scored_by=member.scored_by)


class _PartialGroupsFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of PARTIAL_GROUPS_FILE."""

    format: int
    groups: list[PartialGroup]


_FORMAT = 2
"""1 was the list of groups alone, with each column of tokens in a field of its own."""


def write_partial_groups(carried: Sequence[PartialGroup], folder: Path) -> None:
    """Puts partial groups into a checkpoint."""
    if carried:
        content = _PartialGroupsFile(format=_FORMAT, groups=list(carried))
        (folder / PARTIAL_GROUPS_FILE).write_bytes(msgspec.msgpack.encode(content, enc_hook=_encode_member))


def read_partial_groups(folder: Path) -> list[PartialGroup]:
    """Partial groups of a checkpoint. Raises CheckpointError if the file cannot be read."""
    path = folder / PARTIAL_GROUPS_FILE
    if not path.exists():
        return []
    try:
        content = msgspec.msgpack.decode(
            path.read_bytes(), type=_PartialGroupsFile | list[msgspec.Raw], dec_hook=_decode_member
        )
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{path}: not readable as carried groups: {error}") from error
    if isinstance(content, list) or content.format != _FORMAT:
        found = 1 if isinstance(content, list) else content.format
        raise CheckpointError(
            f"{path} has format {found}, this version of hybridflow reads format {_FORMAT}. Resume with the version "
            "that wrote it, or from a checkpoint without this file"
        )
    return content.groups
