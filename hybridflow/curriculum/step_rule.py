"""Step rules: which complete groups a step counts, and how many more it begins for those that it does not.

Group assembly asks the rule about each group once, when its last verdict is there. A step ends when `num_needed` groups
count. Groups that do not count stay in the step: filters leave them out of the batch, and records and metrics say why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hybridflow.types import Group


@dataclass(frozen=True)
class Progress:
    """Groups of the step under way."""

    num_needed: int
    """With so many that count the step ends."""
    num_counted: int
    """Complete, and counted by the rule."""
    num_rejected: int
    """Complete, and not counted."""
    num_open: int
    """Neither complete nor given up."""
    num_unknown: float = 0.0
    """Share of verdicts that are unknown, summed over the groups that are not counted."""

    @property
    def num_short(self) -> int:
        """Groups that are lacking even if every open one should count."""
        return max(0, self.num_needed - self.num_counted - self.num_open)


class StepRule(Protocol):
    """Decides when a step has enough groups."""

    def counts(self, group: Group) -> bool:
        """True for a complete group that is one of those that the step needs."""
        ...

    def num_more(self, progress: Progress) -> int:
        """Groups to begin now, in place of those that do not count; asked after each complete group."""
        ...


class EveryCompleteGroup:
    """Every complete group counts, whatever its rewards; none is begun in place of another."""

    def counts(self, group: Group) -> bool:
        return True

    def num_more(self, progress: Progress) -> int:
        return 0


@dataclass(frozen=True)
class TeachingGroups:
    """Dynamic sampling (DAPO, arXiv 2503.14476): groups count that no filter leaves out; the others are replaced.

    DAPO, and the released code of QwenLong-L1, decode a batch, filter it, and decode another one where too few are
    left. Here each group that is left out is replaced at once, so that engines have as much to do as before. Where
    verdicts are unknown, no other prompt helps: with more than a batch's worth of them nothing more is replaced.
    """

    reason_to_drop: Callable[[Group], str | None]
    """As the filters have it; None: the group teaches."""
    count_under_way: Callable[[int], int]
    """Groups that count or are open, of so many needed, as long as there are tries."""
    max_generation_batches: int
    """Most groups of a step, as a multiple of that."""

    def counts(self, group: Group) -> bool:
        return self.reason_to_drop(group) is None

    def num_more(self, progress: Progress) -> int:
        num_under_way = self.count_under_way(progress.num_needed)
        num_alive = progress.num_counted + progress.num_open
        num_tries_left = num_under_way * self.max_generation_batches - num_alive - progress.num_rejected
        is_ill = round(progress.num_unknown, 6) > num_under_way
        return 0 if is_ill else max(0, min(num_under_way - num_alive, num_tries_left))
