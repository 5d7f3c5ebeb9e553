"""Sinks of the recorder: files, trackers, totals and display. A further place for records is a further sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hybridflow.recording.accuracy import EvalResult
from hybridflow.recording.display.live import LiveDisplay
from hybridflow.recording.metrics import add_to_state, build_update_line
from hybridflow.recording.records import CompletionRecord
from hybridflow.recording.state import RunState
from hybridflow.recording.timeline import Span, TimelineRecord
from hybridflow.recording.trackers import Tracker
from hybridflow.types import Collected, FilteredBatch, Group, UpdateReport

Stage = Literal["train", "eval"]


@dataclass(frozen=True)
class StepRecord:
    """Record of a training step."""

    step: int
    collected: Collected
    filtered: FilteredBatch
    updates: Sequence[UpdateReport]
    spans: Mapping[str, Span]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class EvalRecord:
    """Record of an evaluation, by name of each set."""

    step: int
    groups: Mapping[str, list[Group]]
    results: Mapping[str, EvalResult]
    metrics: Mapping[str, float]


class Sink:
    """Base of all sinks: takes everything and keeps nothing."""

    def begin_stage(self, name: str, num_steps: int, num_done: int) -> None:
        """A stage of so many steps begins, or goes on after `num_done` of them."""

    def begin_phase(self, name: str) -> None:
        """The run enters this phase."""

    def end_phase(self, name: str, seconds: float) -> None:
        """It took so long, or a part of it that has a name of its own did."""

    def note(self, text: str) -> None:
        """Something that a user should know."""

    def unfinished(self, stage: Stage, step: int, groups: list[Group]) -> None:
        """Groups of a step or evaluation that its verdicts brought to an end."""

    def step(self, record: StepRecord) -> None:
        """A step is done."""

    def evaluation(self, record: EvalRecord) -> None:
        """An evaluation is done."""


class Totals(Sink):
    """Running totals of a run, in its state."""

    def __init__(self, state: RunState) -> None:
        self._state = state

    def end_phase(self, name: str, seconds: float) -> None:
        self._state.add_seconds(name, seconds)

    def step(self, record: StepRecord) -> None:
        add_to_state(self._state, record.collected, record.filtered, record.updates)


class Files(Sink):
    """Completions of training and evaluation, and the timeline of steps, each in a file of the run folder."""

    def __init__(self, train: CompletionRecord, evaluation: CompletionRecord, timeline: TimelineRecord) -> None:
        self._completions: dict[Stage, CompletionRecord] = {"train": train, "eval": evaluation}
        self._timeline = timeline

    def unfinished(self, stage: Stage, step: int, groups: list[Group]) -> None:
        self._completions[stage].append(step, groups)

    def step(self, record: StepRecord) -> None:
        self._timeline.append(record.step, dict(record.spans))
        filtered = record.filtered
        self._completions["train"].append(
            record.step, record.collected.groups, filtered.overlong, filtered.measured.kl_prices
        )

    def evaluation(self, record: EvalRecord) -> None:
        for groups in record.groups.values():
            self._completions["eval"].append(record.step, groups)


class Metrics(Sink):
    """Trackers: a line per step and evaluation in one, a line per optimizer step in the other."""

    def __init__(self, steps: Tracker, updates: Tracker) -> None:
        self._steps = steps
        self._updates = updates

    def step(self, record: StepRecord) -> None:
        for update in record.updates:
            self._updates.log(record.step, build_update_line(update))
        self._steps.log(record.step, record.metrics)

    def evaluation(self, record: EvalRecord) -> None:
        self._steps.log(record.step, record.metrics)


class Display(Sink):
    """Live display of a run."""

    def __init__(self, display: LiveDisplay) -> None:
        self._display = display

    def begin_stage(self, name: str, num_steps: int, num_done: int) -> None:
        self._display.start(name, num_steps, num_done)

    def begin_phase(self, name: str) -> None:
        self._display.phase(name.upper())

    def note(self, text: str) -> None:
        self._display.note(text)

    def step(self, record: StepRecord) -> None:
        self._display.step(record.step - 1, record.metrics)

    def evaluation(self, record: EvalRecord) -> None:
        for name, result in record.results.items():
            self._display.note(
                f"greedy accuracy on {len(record.groups[name])} {name} prompts after {record.step} RL steps: "
                f"{result.describe()}"
            )
