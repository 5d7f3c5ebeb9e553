"""Mean reward of groups, and its bounds where verdicts are unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from hybridflow.types import Group, Scored


class Bounds(msgspec.Struct, frozen=True):
    """Bounds of the mean reward, whatever the unknown verdicts would have been."""

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


TEST = "test"
"""Set of the test prompts, whose metrics are `eval/accuracy` and so on; another set's are `eval/<name>/accuracy`."""


class EvalResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of an evaluation on one set of prompts."""

    accuracy: float | None
    """Mean reward over completions with a verdict; None where none has one."""
    bounds: Bounds | None
    """None in checkpoints of earlier versions alone."""

    @classmethod
    def of(cls, groups: list[Group]) -> EvalResult:
        accuracy = compute_accuracy(groups)
        return cls(accuracy=accuracy if math.isfinite(accuracy) else None, bounds=compute_bounds(groups))

    def describe(self) -> str:
        """For a user."""
        accuracy = math.nan if self.accuracy is None else self.accuracy
        return f"{accuracy:.3f}{self.bounds.describe() if self.bounds else ''}"


def build_eval_metrics(results: Mapping[str, EvalResult]) -> dict[str, float]:
    """Metrics of an evaluation by `group/name`."""
    metrics: dict[str, float] = {}
    for name, result in results.items():
        prefix = "eval" if name == TEST else f"eval/{name}"
        metrics[f"{prefix}/accuracy"] = math.nan if result.accuracy is None else result.accuracy
        if result.bounds is not None:
            metrics[f"{prefix}/unknown"] = float(result.bounds.num_unknown)
            metrics[f"{prefix}/accuracy_low"] = result.bounds.low
            metrics[f"{prefix}/accuracy_high"] = result.bounds.high
    return metrics
