"""When a phase is taken for stalled: by a clock in the test's hand."""

from __future__ import annotations

from hybridflow.cluster.watchdog import END_AFTER_S, REPORT_AFTER_S, StallClock


def actions(clock: StallClock, *times: float) -> list[str | None]:
    return [clock.check(now) for now in times]


def test_a_stall_is_reported_once_and_then_ends_the_run() -> None:
    clock = StallClock({"train": 60.0})
    clock.enter("train", 100.0)
    assert actions(clock, 159, 160) == [None, None]
    assert actions(clock, 161, 162, 160 + END_AFTER_S) == ["report", None, None]
    assert actions(clock, 161 + END_AFTER_S) == ["end"]
    assert 1 < REPORT_AFTER_S < END_AFTER_S


def test_each_sign_of_life_sets_the_deadline_anew() -> None:
    clock = StallClock({"train": 60.0})
    clock.enter("train", 0.0)
    assert actions(clock, 61) == ["report"]
    clock.moved(70.0)
    assert actions(clock, 129, 131) == [None, "report"]


def test_a_late_sign_does_not_turn_time_back() -> None:
    clock = StallClock({"train": 60.0})
    clock.enter("train", 100.0)
    clock.moved(50.0)
    assert clock.seconds_still(110.0) == 10.0


def test_a_phase_without_a_limit_has_no_deadline() -> None:
    clock = StallClock({"train": 60.0})
    assert actions(clock, 1e9) == [None]
    clock.enter("export", 0.0)
    assert actions(clock, 1e9) == [None]
