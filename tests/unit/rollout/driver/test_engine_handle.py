"""When an engine is taken for hung."""

from __future__ import annotations

from hybridflow.rollout.driver.engine_handle import EngineHealth


def test_an_answer_that_stays_away() -> None:
    health = EngineHealth(0.0, hang_timeout_s=10)
    health.asked(5.0)
    assert health.complaint(15.0) is None
    assert health.complaint(15.1) == "it has not answered for 10.1 s"


def test_answers_without_progress_while_there_is_work() -> None:
    health = EngineHealth(0.0, hang_timeout_s=10)
    health.given_work(100.0)
    for now in (101.0, 105.0, 111.0):
        health.asked(now)
        health.answered(now, (4, 2), num_in_flight=3)
    assert health.complaint(111.0) is None  # the first answer was news
    assert health.complaint(111.1) == "it has work, and nothing has moved in it for 10.1 s"


def test_any_change_is_progress() -> None:
    health = EngineHealth(0.0, hang_timeout_s=10)
    health.given_work(0.0)
    for now in range(0, 100, 9):
        health.asked(float(now))
        health.answered(float(now), (now,), num_in_flight=1)
        assert health.complaint(now + 9.0) is None


def test_an_idle_engine_need_not_move() -> None:
    health = EngineHealth(0.0, hang_timeout_s=10)
    for now in (1.0, 50.0, 500.0):
        health.asked(now)
        health.answered(now, (7,), num_in_flight=0)
    assert health.complaint(900.0) is None


def test_work_after_a_long_rest_does_not_count_the_rest() -> None:
    health = EngineHealth(0.0, hang_timeout_s=10)
    health.asked(1.0)
    health.answered(1.0, (7,), num_in_flight=0)
    health.given_work(1000.0)
    assert health.complaint(1009.0) is None
    assert health.complaint(1011.0) is not None
