"""When a judge endpoint may be called, and when an answer is late: no server, no waiting."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from hybridflow.reward_service.judge.endpoint_state import (
    CAP_S,
    LATE_FACTOR,
    MAX_OPEN_S,
    MIN_ANSWERS,
    MIN_CALLS,
    OPEN_S,
    Breaker,
    Endpoint,
    Latency,
    compute_backoff_s,
)
from hybridflow.reward_service.judge.server import read_retry_after_s


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def opened(clock: Clock, said: list[str]) -> Breaker:
    """A breaker after as many failures as it takes."""
    breaker = Breaker(clock, said.append)
    for number in range(MIN_CALLS):
        assert breaker.state == "closed", f"after {number} failures"
        breaker.failed("HTTP 500")
    return breaker


def test_breaker_opens_and_says_why(opened: Breaker, clock: Clock, said: list[str]) -> None:
    assert (opened.state, opened.admits, opened.down_since) == ("open", False, clock.now)
    assert said == ["8 of its last 8 calls failed, last: HTTP 500; nothing is sent for 1 s"]


def test_breaker_stays_closed_while_most_calls_succeed(clock: Clock, said: list[str]) -> None:
    breaker = Breaker(clock, said.append)
    for number in range(300):
        breaker.failed("HTTP 500") if number % 3 == 0 else breaker.succeeded()
    assert breaker.state == "closed" and said == []


def test_breaker_admits_one_probe_and_closes_on_its_success(opened: Breaker, clock: Clock, said: list[str]) -> None:
    clock.now += OPEN_S
    assert (opened.state, opened.admits) == ("half_open", True)
    opened.started()
    assert not opened.admits
    opened.succeeded()
    assert (opened.state, opened.admits, opened.down_since) == ("closed", True, None)
    assert said[1:] == ["answers again after 1 s"]
    opened.failed("HTTP 500")  # what failed before counts no more
    assert opened.state == "closed"


def test_breaker_doubles_its_time_with_each_failed_probe(opened: Breaker, clock: Clock) -> None:
    since, waited = clock.now, OPEN_S
    for _ in range(8):
        clock.now += waited
        opened.started()
        opened.failed("HTTP 500")
        waited = min(2 * waited, MAX_OPEN_S)
        assert opened.retry_at == clock.now + waited
    assert (waited, opened.down_since, opened.num_opened) == (MAX_OPEN_S, since, 1)


def test_a_probe_given_up_leaves_room_for_another(opened: Breaker, clock: Clock) -> None:
    clock.now += OPEN_S
    opened.started()
    opened.abandoned()
    assert opened.admits


def test_backoff_is_jittered_grows_is_capped_and_honours_the_server() -> None:
    rng = random.Random(0)
    longest = [max(compute_backoff_s(failures, None, rng) for _ in range(500)) for failures in (1, 2, 4, 20)]
    assert longest == pytest.approx([0.2, 0.4, 1.6, CAP_S], rel=0.02)
    assert all(compute_backoff_s(1, None, rng) >= 0 for _ in range(500))
    assert compute_backoff_s(1, 3.5, rng) == 3.5
    assert compute_backoff_s(10_000, None, rng) <= CAP_S


def endpoint(clock: Clock, per_second: float | None = None) -> Endpoint:
    return Endpoint("http://judge/v1", num_slots=2, per_second=per_second, late_after_s=10.0, clock=clock)


def test_an_endpoint_is_strained_while_most_requests_get_no_answer(clock: Clock) -> None:
    server = endpoint(clock)
    assert not server.is_strained
    server.declined(is_final=False)
    assert server.is_strained, "nothing speaks for this server yet"
    server.answered(0.1)
    assert not server.is_strained
    for number in range(300):  # 1 of 4 refused, as by chance
        server.answered(0.1) if number % 4 != 3 else server.declined(is_final=False)
        assert not server.is_strained
    for _ in range(11):  # 11 of the last 20
        server.failed("HTTP 500")
    assert server.is_strained


def test_what_a_server_will_never_answer_is_no_strain(clock: Clock) -> None:
    server = endpoint(clock)
    server.declined(is_final=True)
    assert not server.is_strained


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("2", 2.0),
        ("0.25", 0.25),
        ("-3", 0.0),
        ("Mon, 02 Mar 2026 10:00:30 GMT", 30.0),
        ("Mon, 02 Mar 2026 09:00:00 GMT", 0.0),
        ("soon", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert read_retry_after_s(header, now=datetime(2026, 3, 2, 10, tzinfo=UTC)) == seconds


def test_calls_are_spaced_evenly_and_do_not_make_up_for_silence(clock: Clock) -> None:
    server = endpoint(clock, per_second=4.0)
    assert server.admits
    server.started()
    assert (server.admits, server.next_at) == (False, 100.25)
    clock.now = 200.0
    assert server.admits
    server.started()
    assert server.next_at == 200.25


def test_an_endpoint_takes_as_many_calls_as_it_has_slots(clock: Clock) -> None:
    server = endpoint(clock)
    server.started()
    assert server.admits
    server.started()
    assert not server.admits


def test_late_is_learned_from_answers_and_doubled_by_each_late_one() -> None:
    latency = Latency(longest_s=10.0)
    for _ in range(MIN_ANSWERS - 1):
        latency.answered(0.5)
    assert latency.late_s(0) == 10.0
    latency.answered(0.5)
    assert [latency.late_s(number) for number in range(3)] == [0.5 * LATE_FACTOR, LATE_FACTOR, 2 * LATE_FACTOR]
    assert latency.late_s(50) == 10.0
    for _ in range(20):  # a server that has become slower: the 95th percentile follows within few answers
        latency.answered(2.0)
    assert latency.late_s(0) == 2.0 * LATE_FACTOR


def test_late_is_not_learned_from_the_fastest_of_those_that_started_together() -> None:
    latency = Latency(longest_s=10.0)
    for num_in_flight in range(1, 41):
        latency.started(num_in_flight)
    for _ in range(79):
        latency.answered(0.5)
    assert latency.late_s(0) == 10.0
    latency.answered(0.5)
    assert latency.late_s(0) == 0.5 * LATE_FACTOR
