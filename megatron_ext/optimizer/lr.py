"""Learning rate of each optimizer step. Pure functions: no torch, no Megatron, no state to save."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ScheduleKind = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class LRSchedule:
    """Linear warm-up to the peak, then constant, or a decay that reaches `min_ratio` x peak at the last step.

    Raises ValueError for a number out of range.
    """

    peak: float
    kind: ScheduleKind = "constant"
    warmup_steps: int = 0
    """Step number `warmup_steps` is the first at the peak; 0 and 1 both mean no warm-up."""
    total_steps: int = 0
    """Steps of the whole run. A constant schedule needs none."""
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "linear", "cosine"):
            raise ValueError(f"kind = {self.kind!r}: choose constant, linear or cosine")
        if not (self.peak > 0 and self.warmup_steps >= 0 and 0 <= self.min_ratio <= 1):
            raise ValueError(
                f"peak = {self.peak}, warmup_steps = {self.warmup_steps}, min_ratio = {self.min_ratio}: the peak must "
                "be positive, the warm-up not negative, and the ratio between 0 and 1"
            )
        if self.kind != "constant" and self.total_steps < max(self.warmup_steps, 1):
            raise ValueError(
                f"total_steps = {self.total_steps}: a {self.kind} schedule with warmup_steps = {self.warmup_steps} "
                "must be at least that long; lower the warm-up or give the number of steps of the run"
            )


def learning_rate(schedule: LRSchedule, step: int) -> float:
    """Learning rate of step `step`, numbered from 1. Steps beyond the last keep its rate.

    Warm-up: peak * step / warmup_steps. Then, with p from 0 at the first step at the peak to 1 at the last step and
    m = min_ratio: linear peak * (1 - (1 - m) p), cosine peak * (m + (1 - m) (1 + cos(pi p)) / 2).
    Raises ValueError for a step below 1.
    """
    if step < 1:
        raise ValueError(f"step = {step}: steps are numbered from 1")
    first_at_peak = max(schedule.warmup_steps, 1)
    if step < first_at_peak:
        return schedule.peak * (step / first_at_peak)
    if schedule.kind == "constant":
        return schedule.peak
    progress = min(1.0, (step - first_at_peak) / max(schedule.total_steps - first_at_peak, 1))
    if schedule.kind == "linear":
        return schedule.peak * (1 - (1 - schedule.min_ratio) * progress)
    falling = (1 + math.cos(math.pi * progress)) / 2
    return schedule.peak * (schedule.min_ratio + (1 - schedule.min_ratio) * falling)
