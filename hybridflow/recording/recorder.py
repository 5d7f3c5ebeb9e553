"""Recorder of a run: times its phases, builds the metrics of steps and evaluations, and gives all to its sinks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from hybridflow.config.rollout_section import RolloutSection
from hybridflow.observability.log import set_step
from hybridflow.recording.accuracy import EvalResult, build_eval_metrics
from hybridflow.recording.judge_totals import JudgeTotals
from hybridflow.recording.lengths import LengthTotals
from hybridflow.recording.metrics import build_metrics
from hybridflow.recording.sinks import EvalRecord, Sink, Stage, StepRecord
from hybridflow.recording.timeline import Mark, Timeline, compute_overlap
from hybridflow.types import Collected, FilteredBatch, Group, UpdateReport

Meter = Callable[[], Mapping[str, float]]
"""Metrics of a part of the run since the last call."""


class Recorder:
    """Everything that is told of a run goes through here.

    Args:
        sinks: Told in this order.
        rollout: The section that decides which metrics a step has.
        judge: Totals of the model judge.
        lengths: Totals of the lengths of completions.
        meters: Asked at the end of each step.
        watch: Inside `watch(phase)` the watchdog's deadline for the phase holds.
        moved: Told that the run gets on: a sign of life.
        started: Monotonic time at which this process began to work on the run.
        wall_before: Seconds of earlier processes of the run.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        *,
        rollout: RolloutSection,
        judge: JudgeTotals,
        lengths: LengthTotals | None = None,
        timeline: Timeline | None = None,
        meters: Sequence[Meter] = (),
        watch: Callable[[str], AbstractContextManager[None]] = lambda phase: nullcontext(),
        moved: Callable[[], None] = lambda: None,
        started: float,
        wall_before: float = 0.0,
    ) -> None:
        self.judge = judge
        self._lengths = lengths or LengthTotals()
        self._sinks = sinks
        self._rollout = rollout
        self._timeline = timeline or Timeline()
        self._meters = meters
        self._watch = watch
        self._moved = moved
        self._started = started
        self._wall_before = wall_before
        self._step_seconds: dict[str, float] = {}

    @property
    def wall_s(self) -> float:
        """Seconds of this run so far, earlier processes included."""
        return self._wall_before + time.monotonic() - self._started

    def note(self, text: str) -> None:
        """Tells the user something."""
        for sink in self._sinks:
            sink.note(text)

    def begin_stage(self, name: str, num_steps: int, num_done: int = 0) -> None:
        """Tells of a stage of the run that begins, or goes on after `num_done` of its steps."""
        for sink in self._sinks:
            sink.begin_stage(name, num_steps, num_done)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Shows and times a phase; its seconds count for the run and for the step under way."""
        for sink in self._sinks:
            sink.begin_phase(name)
        started = time.monotonic()
        try:
            with self._watch(name):
                yield
        finally:
            ended = time.monotonic()
            self._add_seconds(name, ended - started)
            self._timeline.add(name, started, ended)

    def begin_step(self, step: int) -> None:
        """Counts all that is timed from here on for this step."""
        self._step_seconds = {}
        self._timeline.begin_step()
        set_step(step)

    def mark(self, what: Mark) -> None:
        """Something happened while completions were collected."""
        self._timeline.mark(what)
        self._moved()

    def add_collected(self) -> None:
        """Times decoding and scoring, which ran side by side, from the marks."""
        for name, seconds in self._timeline.add_collected().items():
            self._add_seconds(name, seconds)

    def add_verdicts(self, groups: list[Group]) -> None:
        """Counts what judges did, and tells of endpoints that went down or came back."""
        self.judge.add(groups)
        for news in self.judge.take_news():
            self.note(news)

    def unfinished(self, stage: Stage, step: int, groups: list[Group]) -> None:
        """Keeps the completions of a step whose verdicts end the run: the error names them."""
        for sink in self._sinks:
            sink.unfinished(stage, step, groups)

    def record_step(
        self,
        step: int,
        collected: Collected,
        filtered: FilteredBatch,
        updates: Sequence[UpdateReport],
        *,
        learning_rate: float,
        policy_version: int,
    ) -> dict[str, float]:
        """Gives a step to all sinks; returns its metrics. `policy_version` is that of the weights after it."""
        spans = self._timeline.finish_step()
        self._step_seconds["step"] = spans["step"][1]
        metrics = build_metrics(
            policy_version, collected, filtered, updates, self._step_seconds, learning_rate, rollout=self._rollout
        )
        lengths = self._lengths.add(collected, filtered)
        if self._rollout.carries_groups:
            metrics |= lengths
        for meter in self._meters:
            metrics |= meter()
        metrics |= self.judge.take_metrics()
        if (overlap := compute_overlap(spans)) is not None:
            metrics["perf/score_overlap"] = overlap
        record = StepRecord(step, collected, filtered, updates, spans, metrics)
        for sink in self._sinks:
            sink.step(record)
        return metrics

    def record_evaluation(self, step: int, groups: Mapping[str, list[Group]]) -> dict[str, EvalResult]:
        """Gives an evaluation after `step` to all sinks; returns the result of each set, by name."""
        results = {name: EvalResult.of(found) for name, found in groups.items()}
        metrics = build_eval_metrics(results)
        metrics |= {f"eval/{name}": number for name, number in self.judge.take_metrics().items()}
        record = EvalRecord(step, groups, results, metrics)
        for sink in self._sinks:
            sink.evaluation(record)
        return results

    def _add_seconds(self, name: str, seconds: float) -> None:
        self._step_seconds[name] = seconds
        for sink in self._sinks:
            sink.end_phase(name, seconds)
