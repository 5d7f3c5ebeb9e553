"""Group assembly: which groups of a step are complete, whether there are enough, and which stay partial. Pure.

Life of a member:

    asked for --verdict--> ended                     in the group
         |'----aborted---> a beginning of it kept    partial: decoded on in a later step
         '-----dropped---> what there was before     partial: no engine had begun it

A complete group is shown to the step rule, which says whether it counts. The step has enough when `num_needed` count.
"""

from __future__ import annotations

from collections.abc import Iterable

from hybridflow.control.partial_rollouts import StepPlan
from hybridflow.curriculum.step_rule import EveryCompleteGroup, Progress, StepRule
from hybridflow.errors import ProtocolError
from hybridflow.types import Group, GroupRequest, Partial, PartialGroup, ScoredCompletion
from hybridflow.wire.messages import build_completion_id


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
        self._rule = rule or EveryCompleteGroup()
        self._groups: dict[str, _Members] = {}
        self._by_id: dict[str, tuple[str, int]] = {}
        self._counted: dict[str, bool] = {}  # complete groups: whether the rule counts them
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
    def progress(self) -> Progress:
        num_counted = sum(self._counted.values())
        return Progress(
            num_needed=self._num_needed,
            num_counted=num_counted,
            num_rejected=len(self._counted) - num_counted,
            num_open=sum(bool(group.awaited) for group in self._groups.values()),
        )

    @property
    def is_enough(self) -> bool:
        """The step may end: what is still decoded is more than it needs."""
        return sum(self._counted.values()) >= self._num_needed

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
                index=completion.index, tokens=completion.tokens, versions=completion.version_runs
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
        for group_id, group in self._groups.items():
            counts = self._counted.get(group_id)
            if counts is False or (counts and num_taken < self._num_needed):
                groups.append(group.build_group())
                num_taken += counts
            else:
                carried.append(group.build_partial_group())
        return groups, carried

    def _show_to_rule(self, group: _Members) -> None:
        if group.is_complete:
            self._counted[group.request.group_id] = self._rule.counts(group.build_group())

    def _take(self, completion_id: str) -> _Members:
        group_id, index = self._by_id.get(completion_id, ("", -1))
        group = self._groups.get(group_id)
        if group is None or index not in group.awaited:
            raise ProtocolError(f"completion {completion_id} is not awaited in this step")
        group.awaited.discard(index)
        return group
