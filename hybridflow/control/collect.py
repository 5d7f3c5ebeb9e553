"""From prompts to complete groups: decoding and scoring side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from hybridflow.errors import RewardError
from hybridflow.protocols import RewardStream, Rollout
from hybridflow.types import Group, GroupRequest, Prompt, RolloutReport, SamplingParams, ScoredCompletion

POLL_S = 0.1
"""Longest time between two looks at the engines, which wait for more work, or have to be replaced."""


@dataclass(frozen=True)
class Collected:
    """Groups in the order of their requests, members in index order, whatever the order of arrival."""

    groups: list[Group]
    report: RolloutReport


def build_requests(prefix: str, prompts: list[Prompt], num_completions: int) -> list[GroupRequest]:
    """One group per prompt, with ids `<prefix>-g0000`, `<prefix>-g0001`, ..."""
    return [
        GroupRequest(group_id=f"{prefix}-g{slot:04d}", prompt=prompt, num_completions=num_completions)
        for slot, prompt in enumerate(prompts)
    ]


def collect_groups(
    requests: list[GroupRequest],
    sampling: SamplingParams,
    *,
    rollout: Rollout,
    stream: RewardStream,
    verdict_timeout_s: float,
    check_workers: Callable[[], None] = lambda: None,
) -> Collected:
    """Decodes and scores all requests.

    Consumes scored completions in order of arrival; waits for the engines' report and one verdict per completion; is
    unblocked by each verdict, or each `POLL_S`, to keep the engines at work and to see whether a worker died
    (`check_workers` raises then).
    Raises RewardError, naming completions, if verdicts stay away for `verdict_timeout_s` after decoding has ended.
    """
    expected = sum(request.num_completions for request in requests)
    stream.expect(requests)
    rollout.start(requests, sampling)
    scored: dict[str, list[ScoredCompletion]] = {request.group_id: [] for request in requests}
    report: RolloutReport | None = None
    arrived = 0
    last_news = time.monotonic()
    while arrived < expected or report is None:
        item = stream.next(timeout_s=POLL_S if arrived < expected else 0.0)
        if report is None:
            report = rollout.poll()
            last_news = time.monotonic()
        if item is not None:
            scored[item.head.group_id].append(item)
            arrived += 1
            last_news = time.monotonic()
            continue
        check_workers()
        if report is None:
            continue
        if time.monotonic() - last_news > verdict_timeout_s:
            missing = sorted(stream.outstanding())
            raise RewardError(
                f"no verdict for {len(missing)} of {expected} completions within reward.timeout_s = "
                f"{verdict_timeout_s:g} s after decoding ended, among them {', '.join(missing[:3])}"
            )
    groups = [
        Group(
            group_id=request.group_id,
            prompt=request.prompt,
            members=sorted(scored[request.group_id], key=lambda member: member.head.index),
        )
        for request in requests
    ]
    return Collected(groups=groups, report=report)
