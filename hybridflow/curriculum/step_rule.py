"""Step rules: which complete groups a step counts, and how many more it begins for those that it does not.

Group assembly asks the rule about each group once, when its last verdict is there. A step ends when `num_needed` groups
count. Groups that do not count stay in the step: filters leave them out of the batch, and records and metrics say why.
"""

from __future__ import annotations

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
        """Groups to begin now, with prompts that the source hands out next; asked after each complete group."""
        ...


class EveryCompleteGroup:
    """Every complete group counts, whatever its rewards; none is begun in place of another."""

    def counts(self, group: Group) -> bool:
        return True

    def num_more(self, progress: Progress) -> int:
        return 0
