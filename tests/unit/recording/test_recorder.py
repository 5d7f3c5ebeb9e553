"""Records that a recorder gets reach each of its sinks, evaluation by the names of its sets."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hybridflow.config.rollout_section import RolloutSection
from hybridflow.loop.step import build_requests
from hybridflow.recording.accuracy import Bounds, EvalResult, build_eval_metrics
from hybridflow.recording.judge_totals import JudgeTotals
from hybridflow.recording.recorder import Recorder
from hybridflow.recording.sinks import EvalRecord, Sink, StepRecord, Totals
from hybridflow.recording.state import RunState
from hybridflow.types import Collected, FilteredBatch, RolloutReport, StepCounts
from tests.builders import build_group, build_prompt

PROMPT = build_prompt("p0", token_ids=[1, 2])
REQUESTS = build_requests("t00001", [PROMPT, PROMPT], 2)
GROUPS = [build_group(REQUESTS[0], [1.0, 0.0]), build_group(REQUESTS[1], [1.0, None])]


class Ledger(Sink):
    """Toy sink: a line per thing that it is told."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def end_phase(self, name: str, seconds: float) -> None:
        self.lines.append(("phase", name))

    def note(self, text: str) -> None:
        self.lines.append(("note", text))

    def unfinished(self, stage: str, step: int, groups: list[Any]) -> None:
        self.lines.append((stage, step, [group.group_id for group in groups]))

    def step(self, record: StepRecord) -> None:
        self.lines.append(("step", record.step, dict(record.metrics)))

    def evaluation(self, record: EvalRecord) -> None:
        self.lines.append(("eval", record.step, dict(record.results)))


def recorder_of(*sinks: Sink, meters: list[Any] | None = None) -> Recorder:
    return Recorder(list(sinks), rollout=RolloutSection(), judge=JudgeTotals({}), meters=meters or [], started=0.0)


def test_a_further_sink_is_told_of_everything() -> None:
    state, ledger = RunState(), Ledger()
    recorder = recorder_of(Totals(state), ledger, meters=[lambda: {"perf/of_a_part": 3.0}])
    recorder.begin_step(1)
    with recorder.phase("rollout"):
        recorder.note("hello")
    collected = Collected(
        groups=GROUPS,
        report=RolloutReport(num_completions=4, prompt_tokens=80, cached_tokens=20, response_tokens=12),
        counts=StepCounts(num_started=2),
    )
    metrics = recorder.record_step(1, collected, FilteredBatch(None, 1, {}), [], learning_rate=1e-3, policy_version=5)
    recorder.unfinished("eval", 1, GROUPS[:1])
    assert ledger.lines == [
        ("note", "hello"),
        ("phase", "rollout"),
        ("step", 1, metrics),
        ("eval", 1, ["t00001-g0000"]),
    ]
    assert (metrics["perf/of_a_part"], metrics["policy/version"], metrics["groups/started"]) == (3.0, 5.0, 2.0)
    assert metrics["time/rollout_s"] == state.phase_seconds["rollout"] <= metrics["time/step_s"]
    assert (state.groups.started, state.prompt_tokens) == (2, 80)


def test_a_phase_that_an_error_ends_is_timed() -> None:
    ledger = Ledger()
    recorder = recorder_of(ledger)
    with pytest.raises(ValueError), recorder.phase("train"):
        raise ValueError
    assert ledger.lines == [("phase", "train")]


def test_seconds_of_a_step_are_those_since_it_began() -> None:
    recorder = recorder_of()
    with recorder.phase("eval"):
        pass
    recorder.begin_step(1)
    report = RolloutReport(num_completions=0, prompt_tokens=0, cached_tokens=0, response_tokens=0)
    collected = Collected(groups=[], report=report, counts=StepCounts(num_started=0))
    metrics = recorder.record_step(1, collected, FilteredBatch(None, 0, {}), [], learning_rate=0.0, policy_version=0)
    assert "time/step_s" in metrics and "time/eval_s" not in metrics


def test_each_set_has_its_result_by_name() -> None:
    ledger = Ledger()
    results = recorder_of(ledger).record_evaluation(3, {"test": GROUPS, "long": GROUPS[1:]})
    assert results == {
        "test": EvalResult(accuracy=pytest.approx(2 / 3), bounds=Bounds(0.5, 0.75, 1, 4)),
        "long": EvalResult(accuracy=1.0, bounds=Bounds(0.5, 1.0, 1, 2)),
    }
    assert ledger.lines == [("eval", 3, results)]


def test_metrics_of_the_test_set_have_no_name_in_them() -> None:
    results = {
        "test": EvalResult(accuracy=0.5, bounds=Bounds(0.25, 0.75, 2, 4)),
        "long": EvalResult(accuracy=None, bounds=Bounds(0.0, 1.0, 1, 1)),
    }
    metrics = build_eval_metrics(results)
    assert [*metrics] == [
        *("eval/accuracy", "eval/unknown", "eval/accuracy_low", "eval/accuracy_high"),
        *("eval/long/accuracy", "eval/long/unknown", "eval/long/accuracy_low", "eval/long/accuracy_high"),
    ]
    assert [*metrics.values()][:4] == [0.5, 2.0, 0.25, 0.75] and math.isnan(metrics["eval/long/accuracy"])
