"""Groups of one step: as they were decoded and scored, as they are trained on, and as they are left half done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from hybridflow.types.rewards import Group, ScoredCompletion
from hybridflow.types.rollout import Partial, Prompt, RolloutReport
from hybridflow.types.training import TrainBatch


class PartialGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Group that its step did not train on, as far as it was decoded and scored."""

    group_id: str
    prompt: Prompt
    num_completions: int
    members: list[ScoredCompletion]
    """Members that ended, with their verdicts, by index."""
    partials: list[Partial]
    """Beginnings of others, by index; none is empty."""
    seed_id: str = ""
    """As in GroupRequest."""

    @property
    def is_complete(self) -> bool:
        return len(self.members) == self.num_completions

    @property
    def num_tokens(self) -> int:
        """Tokens decoded so far."""
        ended = sum(member.num_tokens for member in self.members)
        return ended + sum(len(partial.tokens) for partial in self.partials)

    @property
    def oldest_version(self) -> int | None:
        """Oldest version of the weights that decoded any token of it; None where there is no token."""
        runs = [run for member in self.members for run in member.completion.version_runs]
        runs += [run for partial in self.partials for run in partial.versions]
        return min((run.version for run in runs), default=None)


@dataclass(frozen=True)
class StepCounts:
    """Counts of how a step began."""

    num_started: int
    """Groups that got their id in this step, those that took the place of others included."""
    num_resumed: int = 0
    """Carried groups of which something was kept."""
    num_discarded: int = 0
    """Carried groups of which nothing was kept, as a token was too old."""
    discarded_tokens: int = 0
    num_discarded_completions: int = 0
    """Completions that had any of these tokens."""


@dataclass(frozen=True)
class Collected:
    """Groups in the order of their requests, members in index order, whatever the order of arrival."""

    groups: list[Group]
    report: RolloutReport
    counts: StepCounts
    carried: list[PartialGroup] = field(default_factory=list)
    """Groups that were begun and not needed."""


@dataclass(frozen=True)
class FilteredBatch:
    """`batch` is None where no group is left to learn from; `dropped` lists group ids by reason."""

    batch: TrainBatch | None
    num_groups: int
    dropped: dict[str, list[str]]
    overlong: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By id of each group, dropped ones included: [G] overlong penalties, 0 or below; empty where it is switched off.
    Filters saw the rewards without them, advantages come from the sums."""
    num_stale_tokens: int = 0
    """Response tokens of the kept groups that older policies decoded, masked ones included."""
    num_tokens: int = 0
    """All response tokens of the kept groups."""
    policy_version: int | None = None
    """From which staleness counts: the version that the step decoded with."""
