"""From prompts to complete groups: decoding and scoring side by side."""

from __future__ import annotations

import time
from collections.abc import Callable

from hybridflow.control.group_assembly import GroupAssembly
from hybridflow.control.partial_rollouts import StepPlan, build_requests, plan_all
from hybridflow.errors import RewardError, RolloutError
from hybridflow.protocols import RewardStream, Rollout
from hybridflow.recording.timeline import Mark
from hybridflow.types import Collected, Group, GroupRequest, RolloutReport, SamplingParams

__all__ = ["build_requests", "collect_groups", "collect_step"]

POLL_S = 0.1
"""Longest time between two looks at the engines, which wait for more work, or have to be replaced."""


class MissingVerdictsError(RewardError):
    """Verdicts stayed away. `groups` holds what there is of the step, unscored completions as unknown."""

    def __init__(self, groups: list[Group], message: str) -> None:
        super().__init__(message)
        self.groups = groups


def collect_groups(
    requests: list[GroupRequest],
    sampling: SamplingParams,
    *,
    rollout: Rollout,
    stream: RewardStream,
    verdict_timeout_s: float,
    check_workers: Callable[[], None] = lambda: None,
) -> Collected:
    """Decodes and scores all requests, see `collect_step`."""
    return collect_step(
        plan_all(requests),
        sampling,
        rollout=rollout,
        stream=stream,
        verdict_timeout_s=verdict_timeout_s,
        check_workers=check_workers,
    )


def collect_step(
    plan: StepPlan,
    sampling: SamplingParams,
    *,
    rollout: Rollout,
    stream: RewardStream,
    verdict_timeout_s: float,
    check_workers: Callable[[], None] = lambda: None,
    mark: Callable[[Mark], None] = lambda what: None,
) -> Collected:
    """Decodes and scores until as many groups are complete as the plan needs; then stops the rest and keeps it.

    Consumes scored completions in order of arrival; waits for the engines' report and one verdict per completion that
    was decoded to its end; is unblocked by each verdict, or each `POLL_S`, to keep the engines at work and to see
    whether a worker died (`check_workers` raises then).
    Raises MissingVerdictsError, naming completions, if verdicts stay away for `verdict_timeout_s` after decoding has
    ended, and RolloutError if engines abort what nobody stopped. `mark` is told when decoding begins and ends and of
    each verdict.
    """
    assembly = GroupAssembly(plan)
    stream.expect(assembly.requests)
    mark("decode_begin")
    rollout.start(assembly.requests, sampling)
    report: RolloutReport | None = None
    is_stopped = False
    last_news = time.monotonic()
    while not assembly.is_settled or report is None:
        if assembly.is_enough and not assembly.is_settled and not is_stopped:
            rollout.stop()
            is_stopped = True
        item = stream.next(timeout_s=0.0 if assembly.is_settled else POLL_S)
        if report is None:
            report = rollout.poll()
            last_news = time.monotonic()
            if report is not None:
                mark("decode_end")
        if is_stopped:
            dropped = rollout.take_dropped()
            stream.withdraw(dropped)
            assembly.drop(dropped)
        if item is not None:
            assembly.add(item)
            mark("verdict")
            last_news = time.monotonic()
            continue
        check_workers()
        if report is None:
            continue
        if time.monotonic() - last_news > verdict_timeout_s:
            missing = sorted(stream.outstanding())
            for item in stream.give_up(f"no verdict within reward.timeout_s = {verdict_timeout_s:g} s"):
                assembly.add(item)
            raise MissingVerdictsError(
                assembly.groups_so_far(),
                f"no verdict for {len(missing)} of {assembly.num_expected} completions within reward.timeout_s = "
                f"{verdict_timeout_s:g} s after decoding ended, among them {', '.join(missing[:3])}",
            )
    groups, carried = assembly.result()
    if len(groups) < plan.num_needed:
        raise RolloutError(
            f"{len(carried)} of {len(plan.requests)} groups were aborted though the step was not stopped, first "
            f"{carried[0].group_id}: see logs/engine-*.log"
        )
    return Collected(groups=groups, report=report, counts=plan.counts, carried=carried)
