"""Decoding and scoring of a run's steps and evaluations, with the records and checks of every verdict."""

from __future__ import annotations

from collections.abc import Callable

from hybridflow.control.collect import MissingVerdictsError, Refill, collect_step
from hybridflow.control.partial_rollouts import StepPlan
from hybridflow.control.verdict_guard import VerdictGuard
from hybridflow.errors import RewardError
from hybridflow.protocols import RewardStream, Rollout
from hybridflow.recording.recorder import Recorder
from hybridflow.recording.sinks import Stage
from hybridflow.types import Collected, SamplingParams


class Collector:
    """Engines and reward workers of a run, as training and evaluation use them.

    Args:
        check_workers: Raises where a reward worker has died for good.
        guard: Raises where too many verdicts stay unknown.
    """

    def __init__(
        self,
        rollout: Rollout,
        stream: RewardStream,
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
