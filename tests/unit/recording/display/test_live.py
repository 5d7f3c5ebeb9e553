"""The display as a user reads it: plain lines away from a terminal, one panel on it, an estimate that is arithmetic."""

from __future__ import annotations

import io
import time
from collections import deque

import pytest
from rich.console import Console

from hybridflow.recording.display.live import LiveDisplay
from hybridflow.recording.display.state import DisplayState, MetricNames, format_duration


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


METRICS = {
    "reward/mean": 0.5,
    "policy/entropy": 1.25,
    "policy/logprob_gap": 1e-6,
    "time/rollout_s": 2.0,
    "perf/rollout_tokens_per_s": 1234.4,
    "perf/train_tokens_per_s": 567.0,
}


def plain_display(clock: FakeClock, **options: float) -> tuple[LiveDisplay, io.StringIO]:
    stream = io.StringIO()
    console = Console(file=stream, width=40)
    return LiveDisplay("run", console=console, clock=clock, time_of_day=lambda: "12:00:01", **options), stream


def test_plain_lines_away_from_a_terminal() -> None:
    clock = FakeClock()
    display, stream = plain_display(clock)
    display.start("warm-up", 2)
    display.step(0, {"policy/loss": 3.0})
    display.start("RL", 30, first_step=10)
    clock.now += 15
    display.phase("ROLLOUT")
    display.step(10, METRICS)
    clock.now += 5
    display.step(11, METRICS | {"reward/mean": 1.0})
    display.note("checkpoint saved: step 12")
    display.close()
    assert stream.getvalue().splitlines() == [
        "12:00:01 warm-up: 2 steps",
        "12:00:01 warm-up step 1/2 | loss 3 | elapsed 0:00 | eta 0:00",
        "12:00:01 RL: 30 steps, 10 done",
        "12:00:01 RL step 11/30 | reward 0.500 (mean of 1: 0.500) | entropy 1.25 | logprob gap 1e-06 | "
        "tokens/s rollout 1,234, train 567 | elapsed 0:15 | eta 4:45",
        "12:00:01 RL step 12/30 | reward 1.000 (mean of 2: 0.750) | entropy 1.25 | logprob gap 1e-06 | "
        "tokens/s rollout 1,234, train 567 | elapsed 0:20 | eta 3:00",
        "12:00:01 note: checkpoint saved: step 12",
    ]


def test_steps_are_told_each_few_seconds_and_at_the_end() -> None:
    clock = FakeClock()
    display, stream = plain_display(clock)
    display.start("RL", 40)
    for step in range(40):
        clock.now += 0.5
        display.step(step, {})
    display.close()
    told = [line.split(" | ")[0].rpartition(" ")[2] for line in stream.getvalue().splitlines()[1:]]
    assert told == ["1/40", "11/40", "21/40", "31/40", "40/40"]


def test_the_eta_is_of_the_whole_run() -> None:
    """Stages that have not begun are named; the evaluation at the end counts as long as the one before."""
    clock = FakeClock()
    display, stream = plain_display(clock)
    display.plan(["warm-up", "RL"], ends_with_eval=True)
    display.start("warm-up", 10)
    clock.now += 6
    display.step(0, {})
    display.phase("EVAL")
    clock.now += 100
    display.start("RL", 10)
    clock.now += 7
    display.step(0, {})
    display.close()
    etas = [line.rpartition("eta ")[2] for line in stream.getvalue().splitlines() if "eta" in line]
    assert etas == ["more than 0:54, then RL", "2:43"]


def test_before_the_first_stage_a_terminal_shows_what_is_going_on_and_for_how_long() -> None:
    stream, clock = io.StringIO(), FakeClock()
    console = Console(file=stream, force_terminal=True, width=100, height=40, color_system=None)
    display = LiveDisplay("quickstart", console=console, clock=clock)
    display.note("loading the libraries (usually 10 s)")
    display.note("starting Ray (usually 5 s)")
    clock.now += 3
    display.progress("engine-0 loads")
    display.close()
    last = stream.getvalue()[stream.getvalue().rindex("loading the libraries") :]
    assert "starting Ray (usually 5 s)   0:03" in last
    assert "engine-0 loads" in last


def test_what_others_wrote_does_not_act_on_the_terminal() -> None:
    """In lines, on the panel and in the end table."""
    wicked, shown = "a\x1b[2J\u202eb", "a\\x1b[2J\\u202eb"
    display, plain = plain_display(FakeClock())
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=100, height=40, color_system=None)
    panel = LiveDisplay(wicked, console=console, clock=FakeClock())
    for each in (display, panel):
        each.note(wicked)
        each.start(wicked, 3)
        each.note(wicked)
        each.progress(wicked)
        each.close()
        each.summary({"run folder": wicked})
    for stream in (plain, terminal):
        text = stream.getvalue()
        assert "\x1b[2J" not in text and "\u202e" not in text
        assert text.count(shown) >= 3


def test_eta_is_pace_times_what_is_left() -> None:
    """4 steps in 40 s, 6 left: 60 s, less the 3 s that have passed since; never below 0. A phase is no step."""
    state = DisplayState("run", MetricNames(), started_at=0.0, messages=deque())
    state.enter_stage("RL", total_steps=12, first_step=2, now=100.0)
    assert state.eta_s(105.0) is None
    for index in range(4):
        state.finish_step(2 + index, {}, 110.0 + 10 * index)
    state.enter_phase("TRAIN", 142.0)
    assert state.eta_s(143.0) == pytest.approx(57.0)
    assert state.eta_s(1e6) == 0.0


def test_mean_reward_is_of_the_last_five_of_the_stage() -> None:
    state = DisplayState("run", MetricNames(), started_at=0.0, messages=deque())
    state.enter_stage("RL", 10, 0, 0.0)
    for step in range(7):
        state.finish_step(step, {"reward/mean": float(step)}, float(step))
    assert state.mean_reward == 4.0
    state.enter_stage("RL 2", 10, 0, 0.0)
    assert state.mean_reward is None


def test_a_long_phase_speaks_up() -> None:
    stream = io.StringIO()
    display = LiveDisplay("run", console=Console(file=stream, width=200), loud_after_s=0.05)
    display.start("RL", 3)
    display.phase("ROLLOUT")
    deadline = time.monotonic() + 5
    while stream.getvalue().count("still in ROLLOUT of step 1 after") < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    display.close()
    assert stream.getvalue().count("still in ROLLOUT of step 1 after") >= 2


def test_panel_on_a_terminal() -> None:
    stream = io.StringIO()
    clock = FakeClock()
    console = Console(file=stream, force_terminal=True, width=100, height=40, color_system=None)
    display = LiveDisplay("quickstart", console=console, clock=clock)
    display.start("RL", 30)
    display.phase("TRAIN")
    clock.now += 12
    display.step(4, METRICS)
    for index in range(7):
        display.note(f"note {index}")
    display.close()
    display.close()
    last = stream.getvalue()[stream.getvalue().rindex("quickstart") :]
    for shown in (
        "RL",
        "TRAIN",
        "SYNC",
        "5/30",
        "0.500 (mean of 1: 0.500)",
        "1.25",
        "rollout 1,234",
        "note 6",
        "note 2",
    ):
        assert shown in last
    assert "note 1" not in last


def test_summary_table() -> None:
    display, stream = plain_display(FakeClock())
    display.close()
    display.summary({"accuracy": 0.93333333, "steps": 30, "run folder": "runs/x"})
    assert "0.9333" in stream.getvalue() and "runs/x" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (45.4, "0:45"), (405, "6:45"), (3725, "1:02:05"), (-3, "0:00")]
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
