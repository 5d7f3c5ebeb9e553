"""The broker's decisions, without sockets: what goes to whom, in which frames."""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from hybridflow.types import Scored
from hybridflow.wire.broker import INTERVAL_S, Broker, RefusalLog
from hybridflow.wire.codec import decode_to_worker
from hybridflow.wire.dispatcher import ScoreDispatcher
from hybridflow.wire.flow import WINDOW
from hybridflow.wire.messages import Accepted, Bye, Finished, Packer, Ready, ScoreReply, Work
from tests.builders import build_completion, build_request

YES = Scored(value=1.0, rule="r", extracted="e", why="y")
ENGINE = b"engine"


def finished(index: int) -> Finished:
    return Finished("e", index + 1, Packer().pack(build_completion(index=index, text="t")))


def start(num_completions: int, limit_bytes: int = 2**20) -> Broker:
    """All of one group are expected."""
    broker = Broker(lambda message: message.attempt == 0, ScoreDispatcher(lease_s=10.0), limit_bytes)
    broker.dispatcher.expect([build_request(num_completions=num_completions)])
    return broker


def give(broker: Broker) -> dict[bytes, list[list[str]]]:
    """Completion ids in each frame, by identity."""
    return {
        identity: [
            [message.completion_id for message in decode_to_worker(frame) if isinstance(message, Work)]
            for frame in frames
        ]
        for _, identity, frames in broker.take_work()
    }


def test_all_that_one_worker_gets_is_in_one_frame() -> None:
    broker = start(5)
    broker.take_from_worker(b"1", [Ready("w1", 2)])
    broker.take_from_worker(b"2", [Ready("w2", 2)])
    broker.take_from_engine(ENGINE, [finished(index) for index in range(5)])
    assert give(broker) == {b"1": [["g-c00", "g-c02"]], b"2": [["g-c01", "g-c03"]]}
    broker.take_from_worker(b"1", [ScoreReply("g-c00", YES), ScoreReply("g-c02", YES)])
    assert [result.head.index for result in broker.take_scored(9)] == [0, 2]
    assert broker.take_scored(9) == []
    assert give(broker) == {b"1": [["g-c04"]]}


def test_what_is_not_admitted_is_accepted_and_not_scored() -> None:
    broker = start(1)
    broker.take_from_worker(b"1", [Ready("w1", 1)])
    broker.take_from_engine(ENGINE, [Finished("e", 9, finished(0).packed, attempt=1)])
    assert give(broker) == {}
    assert broker.take_answers() == [(ENGINE, Accepted([9], WINDOW))]
    assert broker.dispatcher.outstanding() == {"g-c00"}


def test_after_a_reconnect_a_worker_gets_nothing_until_it_is_heard_of_on_its_new_connection() -> None:
    broker = start(2)
    broker.take_from_worker(b"w", [Ready("w", 2)])
    broker.take_from_engine(ENGINE, [finished(0)])
    assert give(broker) == {b"w": [["g-c00"]]}
    broker.reconnect()
    broker.take_from_engine(ENGINE, [finished(1)])
    assert give(broker) == {}
    broker.take_from_worker(b"w", [ScoreReply("g-c00", YES)])
    assert [result.head.index for result in broker.take_scored(9)] == [0], "it is known by its name"
    broker.take_from_worker(b"w", [Ready("w", 2)])
    assert give(broker) == {b"w": [["g-c01"]]}


def test_a_good_bye_of_a_dead_process_is_not_that_of_the_one_that_took_over() -> None:
    broker = start(1)
    broker.take_from_worker(b"old", [Ready("w", 1)])
    broker.take_from_worker(b"new", [Ready("w", 1)])
    broker.take_from_worker(b"old", [Bye()])
    assert broker.dispatcher.workers == ["w"]
    broker.take_from_worker(b"new", [Bye()])
    assert broker.dispatcher.workers == []


def test_what_waits_for_the_driver_holds_engines_back_too() -> None:
    broker = start(2, limit_bytes=2 * finished(0).packed.num_bytes)
    broker.take_from_worker(b"1", [Ready("w1", 2)])
    broker.take_from_engine(ENGINE, [finished(0)])
    give(broker)
    broker.take_from_worker(b"1", [ScoreReply("g-c00", YES)])
    assert broker.take_answers() == [(ENGINE, Accepted([1], WINDOW))]
    broker.take_from_engine(ENGINE, [finished(1)])
    give(broker)
    broker.take_from_worker(b"1", [ScoreReply("g-c01", YES)])
    assert broker.take_answers() == [(ENGINE, Accepted([2], 0))], "both are scored, and nobody has taken them"
    assert broker.dispatcher.counters == {"engines_held_back": 1}
    assert len(broker.take_scored(1)) == 1 and broker.has_scored
    assert broker.take_answers() == [(ENGINE, Accepted([], WINDOW))]


def test_a_flood_is_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    counters: Counter[str] = Counter()
    log = RefusalLog(counters, logging.getLogger("refusals"))
    log.tell(0.0)
    for number in range(1000):
        counters["stranger"] += 1
        counters["requeued"] += 1  # no refusal
        log.tell(0.1 * number)
    counters["malformed_completion"] += 2
    log.examples["malformed_completion"] = "it was cut off"
    log.tell(2 * INTERVAL_S)
    told = [record.getMessage().split("must not take: ")[1] for record in caplog.records]
    assert told == ["stranger 1", "stranger 600", "malformed_completion 2 (the last: it was cut off), stranger 399"]
