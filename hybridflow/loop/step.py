"""Group assembly and partial rollouts: how a step begins, when it has enough, and what it leaves to the next. Pure.

With `rollout.over_sampling` above 1 a step begins more groups than it trains on and ends when enough are complete. The
others are carried over, as far as they are:

    step k      carried groups, oldest first, then the source's next prompts   --->  `num_begun` groups
                the first `num_needed` complete ones are trained on            --->  the rest is carried over
    step k + 1  ...

So every prompt that was taken is either in the batch of a step or carried. A step goes on until the groups are complete
that later steps could not train on within `max_staleness` versions (`admission.py`), so none is too old. Where nothing
may be older (`rollout.partial = "discard"`) a carried group is discarded as a whole: its prompt begins again, in the
same place, under an id of the new step, but with the seeds of its first begin. With fresh seeds a long completion would
be drawn again and again until a short one ends in time, and the policy would see lengths that it did not choose.

Life of a member:

    asked for --verdict--> ended                     in the group
         |'----aborted---> a beginning of it kept    partial: decoded on in a later step
         '-----dropped---> what there was before     partial: no engine had begun it

A complete group is shown to the step rule, which says whether it counts. The step has enough when `num_needed` count.
Complete groups that count beyond that are carried, too: the bank from which the next step takes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from hybridflow.config.rollout_section import RolloutSection
from hybridflow.curriculum.step_rule import EveryCompleteGroup, Progress, StepRule
from hybridflow.errors import ProtocolError
from hybridflow.loop.admission import Due, find_due
from hybridflow.types import (
    Group,
    GroupRequest,
    Partial,
    PartialGroup,
    Prompt,
    ScoredCompletion,
    StepCounts,
    Unknown,
)
from hybridflow.wire.messages import build_completion_id


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
    due: list[Due] = field(default_factory=list)
    """How many of its first groups have to be complete before it ends."""
    keeps_short: bool = False
    """With fewer groups that count than needed the step leaves them to the next one."""


@dataclass(frozen=True)
class PartialRollouts:
    """Rules of a step that begins more groups than it trains on."""

    num_needed: int
    num_begun: int
    """Groups under way when a step begins, carried ones included."""
    max_staleness: int
    """Most policy versions between the one that decoded a token and the one that the step began with."""
    keeps_short: bool = False
    """As in StepPlan."""

    @classmethod
    def of(cls, section: RolloutSection, prompts_per_step: int) -> PartialRollouts:
        """To discard what was begun is to allow no older version."""
        return cls(
            num_needed=prompts_per_step,
            num_begun=section.count_under_way(prompts_per_step),
            max_staleness=section.kept_versions,
            keeps_short=section.dynamic_sampling and section.when_too_few == "skip",
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
        oldest_versions: list[int] = []
        for group in sorted(carried, key=lambda group: _age_order(group, version)):
            oldest = group.oldest_version
            if oldest is not None and version - oldest > self.max_staleness:
                discarded.append(group)
                continue
            oldest_versions += [] if oldest is None else [oldest]
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
            num_resumed=len(oldest_versions),
            num_discarded=len(discarded),
            discarded_tokens=sum(group.num_tokens for group in discarded),
            num_discarded_completions=sum(len(group.members) + len(group.partials) for group in discarded),
        )
        due = find_due(oldest_versions, version, self.num_needed, self.max_staleness)
        return StepPlan(requests + new, kept, self.num_needed, counts, due, self.keeps_short)


def _age_order(group: PartialGroup, version: int) -> int:
    """Sort key: oldest first, and what nobody has begun to decode as old as it will be."""
    return version if group.oldest_version is None else group.oldest_version


def plan_all(requests: list[GroupRequest]) -> StepPlan:
    """Every group is needed."""
    return StepPlan(requests, {}, len(requests), StepCounts(len(requests)))


def build_requests(prefix: str, prompts: Sequence[Prompt], num_completions: int, first: int = 0) -> list[GroupRequest]:
    """One group per prompt, with ids `<prefix>-g0000`, `<prefix>-g0001`, ..., or from `first` on."""
    return [
        GroupRequest(group_id=f"{prefix}-g{slot:04d}", prompt=prompt, num_completions=num_completions)
        for slot, prompt in enumerate(prompts, first)
    ]


class _Members:
    def __init__(self, request: GroupRequest, kept: Iterable[ScoredCompletion]) -> None:
        self.request = request
        self.ended = {member.head.index: member for member in kept}
        self.partials = {partial.index: partial for partial in request.partials}
        self.awaited = set(request.indices)

    @property
    def is_complete(self) -> bool:
        return len(self.ended) == self.request.num_completions

    @property
    def members(self) -> list[ScoredCompletion]:
        return [self.ended[index] for index in sorted(self.ended)]

    def build_group(self) -> Group:
        return Group(group_id=self.request.group_id, prompt=self.request.prompt, members=self.members)

    def build_partial_group(self) -> PartialGroup:
        return PartialGroup(
            group_id=self.request.group_id,
            prompt=self.request.prompt,
            num_completions=self.request.num_completions,
            members=self.members,
            partials=[self.partials[index] for index in sorted(self.partials)],
            seed_id=self.request.seed_id,
        )


class GroupAssembly:
    """The groups of one step between their request and its end."""

    def __init__(self, plan: StepPlan, rule: StepRule | None = None) -> None:
        """`rule` None: every complete group counts."""
        self._num_needed = plan.num_needed
        self._due = plan.due
        self._keeps_short = plan.keeps_short
        self._rule = rule or EveryCompleteGroup()
        self._groups: dict[str, _Members] = {}
        self._by_id: dict[str, tuple[str, int]] = {}
        self._counted: dict[str, bool] = {}  # complete groups: whether the rule counts them
        self._to_replace: list[GroupRequest] = []
        self._num_unknown = 0.0
        self.extend(plan.requests, plan.kept)

    def extend(self, requests: Iterable[GroupRequest], kept: dict[str, list[ScoredCompletion]] | None = None) -> None:
        """Further groups of the step; `kept`, by group id, are members that ended in earlier steps."""
        for request in requests:
            group = self._groups[request.group_id] = _Members(request, (kept or {}).get(request.group_id, ()))
            for index in group.awaited:
                self._by_id[build_completion_id(request.group_id, index)] = (request.group_id, index)
            self._show_to_rule(group)

    @property
    def num_expected(self) -> int:
        """Completions that the step was to bring."""
        return len(self._by_id)

    @property
    def requests(self) -> list[GroupRequest]:
        """Requests for engines: groups of which members are awaited."""
        return [group.request for group in self._groups.values() if group.awaited]

    @property
    def awaited(self) -> list[str]:
        """Ids of completions that are to come."""
        return [
            build_completion_id(group_id, index)
            for group_id, group in self._groups.items()
            for index in sorted(group.awaited)
        ]

    @property
    def progress(self) -> Progress:
        num_counted = sum(self._counted.values())
        return Progress(
            num_needed=self._num_needed,
            num_counted=num_counted,
            num_rejected=len(self._counted) - num_counted,
            num_open=sum(bool(group.awaited) for group in self._groups.values()),
            num_unknown=self._num_unknown,
        )

    def take_rejected(self, num_groups: int) -> list[GroupRequest]:
        """Requests of groups that do not count, at most so many and each once, in the order of their completion."""
        taken, self._to_replace = self._to_replace[:num_groups], self._to_replace[num_groups:]
        return taken

    @property
    def is_enough(self) -> bool:
        """The step may end: what is still decoded is more than it needs, and can wait."""
        return self.num_short == 0 and all(
            sum(group_id in self._counted for group_id in islice(self._groups, due.num_first)) >= due.num_complete
            for due in self._due
        )

    @property
    def num_short(self) -> int:
        """Groups that have yet to count for the step."""
        return max(0, self._num_needed - sum(self._counted.values()))

    @property
    def is_settled(self) -> bool:
        """Nothing is to come."""
        return not any(group.awaited for group in self._groups.values())

    def add(self, item: ScoredCompletion) -> None:
        """A completion with its verdict, or one that was aborted. ProtocolError for one that is not awaited."""
        completion = item.head
        group = self._take(completion.completion_id)
        if completion.finish_reason != "abort":
            group.ended[completion.index] = item
            group.partials.pop(completion.index, None)
            self._show_to_rule(group)
        elif item.num_tokens:
            completion = item.completion
            group.partials[completion.index] = Partial(
                index=completion.index,
                tokens=completion.tokens,
                versions=completion.version_runs,
                temperature=completion.temperature,
                top_p=completion.top_p,
            )

    def drop(self, completion_ids: Iterable[str]) -> None:
        """Takes away completions that no engine had begun; they will not come."""
        for completion_id in completion_ids:
            self._take(completion_id)

    def groups_so_far(self) -> list[Group]:
        """Members that have ended, by group, for the records of a step that cannot be completed."""
        return [group.build_group() for group in self._groups.values() if group.ended]

    def result(self) -> tuple[list[Group], list[PartialGroup]]:
        """(groups of the step, groups carried over), both in the order of requests, members in index order.

        Of more groups that count than needed the first in the order of requests are taken: the oldest. Complete groups
        that do not count are of the step, too: filters leave them out of the batch and name the reason.
        """
        groups: list[Group] = []
        carried: list[PartialGroup] = []
        num_taken = 0
        num_wanted = 0 if self.num_short and self._keeps_short else self._num_needed
        for group_id, group in self._groups.items():
            counts = self._counted.get(group_id)
            if counts is False or (counts and num_taken < num_wanted):
                groups.append(group.build_group())
                num_taken += counts
            else:
                carried.append(group.build_partial_group())
        return groups, carried

    def _show_to_rule(self, group: _Members) -> None:
        if not group.is_complete:
            return
        complete = group.build_group()
        counts = self._counted[complete.group_id] = self._rule.counts(complete)
        if not counts:
            self._to_replace.append(group.request)
            num_unknown = sum(isinstance(member.verdict, Unknown) for member in complete.members)
            self._num_unknown += num_unknown / len(complete.members)

    def _take(self, completion_id: str) -> _Members:
        group_id, index = self._by_id.get(completion_id, ("", -1))
        group = self._groups.get(group_id)
        if group is None or index not in group.awaited:
            raise ProtocolError(f"completion {completion_id} is not awaited in this step")
        group.awaited.discard(index)
        return group
