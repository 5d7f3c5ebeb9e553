"""Which groups of a step are complete, when there are enough, and what is carried over. Pure: completions go in.

Life of a member:

    asked for --verdict--> ended                     in the group
         |'----aborted---> a beginning of it kept    carried over, gone on with in a later step
         '-----dropped---> what there was before     carried over; no engine had begun it
"""

from __future__ import annotations

from collections.abc import Iterable

from hybridflow.control.partial_rollouts import StepPlan
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


class GroupAssembly:
    """The groups of one step between their request and its end."""

    def __init__(self, plan: StepPlan) -> None:
        self._num_needed = plan.num_needed
        self._groups = {
            request.group_id: _Members(request, plan.kept.get(request.group_id, ())) for request in plan.requests
        }
        self._by_id = {
            build_completion_id(group_id, index): (group_id, index)
            for group_id, group in self._groups.items()
            for index in group.awaited
        }
        self.num_expected = len(self._by_id)

    @property
    def requests(self) -> list[GroupRequest]:
        """What engines have to be asked for."""
        return [group.request for group in self._groups.values() if group.awaited]

    @property
    def is_enough(self) -> bool:
        """The step may end: what is still decoded is more than it needs."""
        return sum(group.is_complete for group in self._groups.values()) >= self._num_needed

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
        elif item.num_tokens:
            completion = item.completion
            group.partials[completion.index] = Partial(
                index=completion.index,
                token_ids=completion.token_ids,
                rollout_logprobs=completion.rollout_logprobs,
                versions=completion.version_runs,
                temperature=completion.temperature,
                top_p=completion.top_p,
                support_lengths=completion.support_lengths,
                support_ids=completion.support_ids,
            )

    def drop(self, completion_ids: Iterable[str]) -> None:
        """These were not begun, and will not come."""
        for completion_id in completion_ids:
            self._take(completion_id)

    def groups_so_far(self) -> list[Group]:
        """Members that have ended, by group, for the records of a step that cannot be completed."""
        return [
            Group(
                group_id=group_id,
                prompt=group.request.prompt,
                members=[group.ended[index] for index in sorted(group.ended)],
            )
            for group_id, group in self._groups.items()
            if group.ended
        ]

    def _take(self, completion_id: str) -> _Members:
        group_id, index = self._by_id.get(completion_id, ("", -1))
        group = self._groups.get(group_id)
        if group is None or index not in group.awaited:
            raise ProtocolError(f"completion {completion_id} is not awaited in this step")
        group.awaited.discard(index)
        return group

    def result(self) -> tuple[list[Group], list[PartialGroup]]:
        """(groups of the step, groups carried over), both in the order of requests, members in index order.

        Of more complete groups than needed the first in the order of requests are taken: the oldest.
        """
        groups: list[Group] = []
        carried: list[PartialGroup] = []
        for group_id, group in self._groups.items():
            members = [group.ended[index] for index in sorted(group.ended)]
            prompt = group.request.prompt
            if group.is_complete and len(groups) < self._num_needed:
                groups.append(Group(group_id=group_id, prompt=prompt, members=members))
                continue
            carried.append(
                PartialGroup(
                    group_id=group_id,
                    prompt=prompt,
                    num_completions=group.request.num_completions,
                    members=members,
                    partials=[group.partials[index] for index in sorted(group.partials)],
                    seed_id=group.request.seed_id,
                )
            )
        return groups, carried
