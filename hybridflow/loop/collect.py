"""Collects complete groups for prompts: decoding and scoring side by side."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from hybridflow.curriculum.step_rule import EveryCompleteGroup, StepRule
from hybridflow.errors import ProtocolError, RewardError, RolloutError
from hybridflow.loop.step import GroupAssembly, StepPlan
from hybridflow.loop.verdict_guard import VerdictGuard
from hybridflow.protocols import Decoder, VerdictStream
from hybridflow.recording.recorder import Recorder
from hybridflow.recording.sinks import Stage
from hybridflow.recording.timeline import Mark
from hybridflow.types import Collected, Group, GroupRequest, RolloutReport, SamplingParams, ScoredCompletion

POLL_S = 0.1
"""Longest time between two looks at the engines, which wait for more work, or have to be replaced."""


class MissingVerdictsError(RewardError):
    """Verdicts stayed away, or too many are unknown.

    `groups` holds what there is of the step, completions for which nothing came as unknown.
    """

    def __init__(self, groups: list[Group], message: str) -> None:
        super().__init__(message)
        self.groups = groups


def _begin_nothing(num_groups: int, rejected: Sequence[GroupRequest]) -> list[GroupRequest]:
    raise ProtocolError(f"the step rule asks for {num_groups} more groups, and the step has no source of prompts")


@dataclass(frozen=True)
class Refill:
    """Step rule, and the source of groups in place of those that it does not count."""

    rule: StepRule = field(default_factory=EveryCompleteGroup)
    begin: Callable[[int, Sequence[GroupRequest]], list[GroupRequest]] = _begin_nothing
    """Requests for so many further groups of the step, the first in place of those that are given and do not count."""


def collect_step(
    plan: StepPlan,
    sampling: SamplingParams,
    *,
    rollout: Decoder,
    stream: VerdictStream,
    verdict_timeout_s: float,
    check_workers: Callable[[], None] = lambda: None,
    check_verdicts: Callable[[Sequence[Group]], None] = lambda groups: None,
    mark: Callable[[Mark], None] = lambda what: None,
    refill: Refill | None = None,
) -> Collected:
    """Decodes and scores until as many groups count as the plan needs; then stops the rest and keeps it.

    Consumes scored completions in order of arrival; waits for the engines' report and one verdict per completion that
    was decoded to its end; is unblocked by each verdict, or each `POLL_S`, to keep the engines at work and to see
    whether a worker died (`check_workers` raises then). Engines get the groups that `refill` begins at once: beside
    what they decode or, once they have told that all is decoded, as a further round of the same step. Before that
    `check_verdicts` sees what there is of the step, where unknown verdicts are among what is to be replaced.
    Raises MissingVerdictsError where `check_verdicts` raises RewardError or, naming completions, if verdicts stay away
    for `verdict_timeout_s` after decoding has ended, and RolloutError if engines abort what nobody stopped. `mark` is
    told when decoding begins and ends and of each verdict.
    """
    step = _Step(plan, sampling, rollout, stream, mark, refill or Refill(), check_verdicts)
    step.begin()
    last_news = time.monotonic()
    while not step.is_over:
        step.stop_if_enough()
        item = stream.next(timeout_s=0.0 if step.assembly.is_settled else POLL_S)
        if step.is_decoding:
            step.look()
            last_news = time.monotonic()
        step.drop()
        if item is not None:
            step.add(item)
            last_news = time.monotonic()
            continue
        check_workers()
        if not step.is_decoding and time.monotonic() - last_news > verdict_timeout_s:
            raise step.give_up(verdict_timeout_s)
    return step.result()


class _Step:
    """A step in the hands of engines and reward workers."""

    def __init__(
        self,
        plan: StepPlan,
        sampling: SamplingParams,
        rollout: Decoder,
        stream: VerdictStream,
        mark: Callable[[Mark], None],
        refill: Refill,
        check_verdicts: Callable[[Sequence[Group]], None],
    ) -> None:
        self.assembly = GroupAssembly(plan, refill.rule)
        self._plan = plan
        self._sampling = sampling
        self._rollout = rollout
        self._stream = stream
        self._mark = mark
        self._refill = refill
        self._check_verdicts = check_verdicts
        self._reports: list[RolloutReport] = []
        self._num_added = 0
        self._is_stopped = False
        self.is_decoding = False

    @property
    def is_over(self) -> bool:
        return self.assembly.is_settled and not self.is_decoding

    def begin(self) -> None:
        if self.assembly.is_enough:  # earlier steps left all that this one needs
            self.assembly.drop(self.assembly.awaited)
        requests = self.assembly.requests
        self._stream.expect(requests)
        self._mark("decode_begin")
        self._decode(requests)
        self._ask_rule()

    def stop_if_enough(self) -> None:
        if not self.assembly.is_enough or self.assembly.is_settled or self._is_stopped:
            return
        self._rollout.stop()
        self._is_stopped = True

    def look(self) -> None:
        """Keeps the engines at work."""
        report = self._rollout.poll()
        if report is not None:
            self._reports.append(report)
            self.is_decoding = False
            self._mark("decode_end")

    def drop(self) -> None:
        """Takes away what was stopped before any engine had begun it."""
        if self._is_stopped:
            dropped = self._rollout.take_dropped()
            self._stream.withdraw(dropped)
            self.assembly.drop(dropped)

    def add(self, item: ScoredCompletion) -> None:
        self.assembly.add(item)
        self._mark("verdict")
        self._ask_rule()

    def give_up(self, verdict_timeout_s: float) -> MissingVerdictsError:
        """The error of a step whose verdicts stay away."""
        missing = sorted(self._stream.outstanding())
        for item in self._stream.give_up(f"no verdict within reward.timeout_s = {verdict_timeout_s:g} s"):
            self.assembly.add(item)
        return MissingVerdictsError(
            self.assembly.groups_so_far(),
            f"no verdict for {len(missing)} of {self.assembly.num_expected} completions within reward.timeout_s = "
            f"{verdict_timeout_s:g} s after decoding ended, among them {', '.join(missing[:3])}",
        )

    def result(self) -> Collected:
        groups, carried = self.assembly.result()
        aborted = [group for group in carried if not group.is_complete]
        if aborted and not self.assembly.is_enough:
            raise RolloutError(
                f"{len(aborted)} of {len(self._plan.requests) + self._num_added} groups were aborted though the step "
                f"was not stopped, first {aborted[0].group_id}: see logs/engine-*.log"
            )
        counts = replace(
            self._plan.counts,
            num_started=self._plan.counts.num_started + self._num_added,
            num_short=self.assembly.num_short,
        )
        return Collected(groups=groups, report=add_reports(self._reports), counts=counts, carried=carried)

    def _ask_rule(self) -> None:
        if self._is_stopped or self.assembly.is_enough:
            return
        progress = self.assembly.progress
        num_more = self._refill.rule.num_more(progress)
        if num_more:
            if progress.num_unknown:
                self._look_at_verdicts()
            requests = self._refill.begin(num_more, self.assembly.take_rejected(num_more))
            self._num_added += len(requests)
            self.assembly.extend(requests)
            self._stream.expect(requests)
            self._decode(requests)

    def _look_at_verdicts(self) -> None:
        groups = self.assembly.groups_so_far()
        try:
            self._check_verdicts(groups)
        except RewardError as error:
            raise MissingVerdictsError(groups, str(error)) from error

    def _decode(self, requests: list[GroupRequest]) -> None:
        if self.is_decoding:
            self._rollout.extend(requests)
        else:
            self._rollout.start(requests, self._sampling)
            self.is_decoding = True


def add_reports(reports: Sequence[RolloutReport]) -> RolloutReport:
    """Sums over the rounds of a step."""
    first, *others = reports
    if not others:
        return first
    events: Counter[str] = Counter()
    for report in reports:
        events.update(report.events)
    names = [name for name in RolloutReport.__struct_fields__ if name != "events"]
    sums = {name: sum(getattr(report, name) for report in reports) for name in names}
    return msgspec.structs.replace(first, **sums, events=dict(sorted(events.items())))


class Collector:
    """Engines and reward workers of a run, as training and evaluation use them.

    Args:
        check_workers: Raises where a reward worker has died for good.
        guard: Raises where too many verdicts stay unknown.
    """

    def __init__(
        self,
        rollout: Decoder,
        stream: VerdictStream,
        *,
        verdict_timeout_s: float,
        check_workers: Callable[[], None],
        guard: VerdictGuard,
        recorder: Recorder,
    ) -> None:
        self._rollout = rollout
        self._stream = stream
        self._verdict_timeout_s = verdict_timeout_s
        self._check_workers = check_workers
        self._guard = guard
        self._recorder = recorder

    def decode(self, plan: StepPlan, sampling: SamplingParams, refill: Refill | None = None) -> Collected:
        """Groups that are decoded and scored, and recorded nowhere."""
        return collect_step(
            plan,
            sampling,
            rollout=self._rollout,
            stream=self._stream,
            verdict_timeout_s=self._verdict_timeout_s,
            check_workers=self._check_workers,
            check_verdicts=self._guard.look,
            mark=self._recorder.mark,
            refill=refill,
        )

    def collect(
        self, stage: Stage, step: int, plan: StepPlan, sampling: SamplingParams, refill: Refill | None = None
    ) -> Collected:
        """Groups of a step or an evaluation, their verdicts counted.

        Where verdicts end the run, the records keep the completions that its error names.
        """
        try:
            collected = self.decode(plan, sampling, refill)
        except MissingVerdictsError as error:
            self._recorder.unfinished(stage, step, error.groups)
            raise
        self._recorder.add_verdicts(collected.groups)
        try:
            self._guard.add(collected.groups)
        except RewardError:
            self._recorder.unfinished(stage, step, collected.groups)
            raise
        return collected
