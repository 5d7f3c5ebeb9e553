"""Mean reward of groups, and its bounds where verdicts are unknown."""

from __future__ import annotations

import math

import msgspec

from hybridflow.types import Group, Scored


class Bounds(msgspec.Struct, frozen=True):
    """Between what the mean reward lies, whatever the unknown verdicts would have been."""

    low: float
    """With each unknown as 0."""
    high: float
    """With each unknown as 1."""
    num_unknown: int
    num_completions: int

    def describe(self) -> str:
        """For a user; empty where everything is known."""
        if not self.num_unknown:
            return ""
        return f", {self.num_unknown} of {self.num_completions} unknown: between {self.low:.3f} and {self.high:.3f}"


def compute_bounds(groups: list[Group]) -> Bounds:
    """Over all completions. Known ones are no sample of all, so their mean may be far from the truth within these."""
    verdicts = [member.verdict for group in groups for member in group.members]
    rewards = [verdict.value for verdict in verdicts if isinstance(verdict, Scored)]
    num_unknown, total = len(verdicts) - len(rewards), max(len(verdicts), 1)
    known = math.fsum(rewards)
    return Bounds(known / total, (known + num_unknown) / total, num_unknown, len(verdicts))


def compute_accuracy(groups: list[Group]) -> float:
    """Mean reward over completions with a verdict; not-a-number where none has one."""
    rewards = [m.verdict.value for group in groups for m in group.members if isinstance(m.verdict, Scored)]
    return sum(rewards) / len(rewards) if rewards else float("nan")
