"""The broker and the sender over real ZeroMQ on the loopback, against a worker written with a bare socket."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from hybridflow.errors import ProtocolError, RewardError
from hybridflow.types import Completion, GroupRequest, Scored, ScoredCompletion
from hybridflow.wire.codec import SCHEMA_VERSION, decode_to_worker, encode
from hybridflow.wire.completion_sender import CompletionSender
from hybridflow.wire.endpoint import Endpoint
from hybridflow.wire.messages import Ready, ScoreReply, Work
from hybridflow.wire.reward_stream import RewardStream
from tests.builders import build_completion, build_prompt, build_request

DEADLINE_S = 30.0


def request_group(slot: int, num_completions: int) -> GroupRequest:
    return build_request(build_prompt(f"p{slot}"), num_completions, group_id=f"t0-g{slot}")


def finish(slot: int, index: int, text: str = "The answer is yen.") -> Completion:
    return build_completion(request_group(slot, 1), index, text=text)


def wait_for(is_true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < end, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.005)


def collect(stream: RewardStream, number: int) -> list[ScoredCompletion]:
    scored: list[ScoredCompletion] = []
    while len(scored) < number:
        item = stream.next(timeout_s=DEADLINE_S)
        assert item is not None, f"only {len(scored)} of {number}; counters {stream.counters}"
        scored.append(item)
    return scored


@pytest.fixture
def stream() -> Iterator[RewardStream]:
    stream = RewardStream(lease_s=600)  # workers here are silent on purpose, and the machine may be busy
    yield stream
    stream.close()


@contextlib.contextmanager
def worker(stream: RewardStream) -> Iterator[None]:
    """Answers one item after the other; ends with the stream."""

    def run() -> None:
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.connect(stream.endpoint_workers.address)
        socket.send(encode(Ready("w", 1)))
        while isinstance(message := decode_to_worker(socket.recv())[0], Work):
            verdict = Scored(value=1.0, rule="fake", extracted="", why="always")
            socket.send(encode(ScoreReply(message.completion_id, verdict)))
        context.destroy(linger=0)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    stream.close()
    thread.join(DEADLINE_S)
    assert not thread.is_alive(), "Stop did not arrive"


def test_malformed_bytes_are_counted_and_the_stream_goes_on(stream: RewardStream) -> None:
    stream.expect([request_group(0, 1)])
    context = zmq.Context()
    push, dealer = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
    push.connect(stream.endpoint_completions.address)
    dealer.connect(stream.endpoint_workers.address)
    for noise in (b"", b"\x00", bytes([SCHEMA_VERSION]) + b"not msgpack"):
        push.send(noise)
        dealer.send(noise)
    push.send_multipart([b"two", b"frames"])
    dealer.send_multipart([b"two", b"frames"])
    wait_for(lambda: stream.counters.total() == 8, "eight refusals")
    context.destroy(linger=0)
    assert stream.counters == {"malformed_completion": 4, "malformed_worker_message": 4}
    with CompletionSender(stream.endpoint_completions, "e") as sender, worker(stream):
        sender.send(finish(0, 0))
        assert len(collect(stream, 1)) == 1


def test_duplicates_and_strangers_are_counted(stream: RewardStream) -> None:
    stream.expect([request_group(0, 1)])
    with CompletionSender(stream.endpoint_completions, "e") as sender, worker(stream):
        for slot in (0, 0, 7):
            sender.send(finish(slot, 0))
        assert len(collect(stream, 1)) == 1
        wait_for(lambda: stream.counters.total() == 2, "two drops")
        assert stream.counters == {"duplicate_completion": 1, "unexpected_completion": 1}
        assert stream.next(timeout_s=0.05) is None
        with pytest.raises(ProtocolError, match="expected twice"):
            stream.expect([request_group(0, 1)])


def test_an_error_in_the_thread_surfaces_at_every_later_call(
    stream: RewardStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(frame: bytes) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("hybridflow.wire.broker_thread.decode_from_engine", broken)
    with CompletionSender(stream.endpoint_completions, "e", send_timeout_s=0.5, flush_timeout_s=0) as sender:
        with pytest.raises(RewardError, match="nothing was heard of it"):
            sender.send(finish(0, 0))
        with pytest.raises(RewardError, match="out of luck"):
            stream.next(timeout_s=DEADLINE_S)
    for call in (stream.outstanding, lambda: stream.expect([]), lambda: stream.worker_lost("w")):
        with pytest.raises(RewardError, match="out of luck"):
            call()


def test_next_waits_no_longer_than_asked_and_close_wakes_it(stream: RewardStream) -> None:
    start = time.monotonic()
    assert stream.next(timeout_s=0.05) is None
    assert 0.05 <= time.monotonic() - start < 5
    woken: list[BaseException] = []

    def wait() -> None:
        try:
            stream.next(timeout_s=DEADLINE_S)
        except RewardError as error:
            woken.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    stream.close()
    waiter.join(DEADLINE_S)
    assert "closed" in str(woken[0])
    assert stream.outstanding() == set()


def test_a_sender_without_a_stream_raises_in_time_and_names_both_ends() -> None:
    sender = CompletionSender(Endpoint("tcp://127.0.0.1:9"), "engine-3", send_timeout_s=0.1, flush_timeout_s=0.1)
    with pytest.raises(RewardError, match=r"engine-3 could not send t0-g0-c00 to tcp://127\.0\.0\.1:9"):
        sender.send(finish(0, 0))
    sender.close()
    sender.close()
    with pytest.raises(RewardError, match="closed"):
        sender.send(finish(0, 0))


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "192.0.2.1"])
def test_a_host_that_others_cannot_reach_is_refused(host: str) -> None:
    with pytest.raises(RewardError, match="cannot bind"):
        RewardStream(host)
