"""Stream, engines' senders and workers over real ZeroMQ on the loopback; threads stand for processes.

Not covered here: processes that are killed (tests/faults), and a host that is not this one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import zmq

from hybridflow.errors import ProtocolError, RewardError
from hybridflow.reward_service.sandbox.protocol import BUILD_RULES, Setup
from hybridflow.reward_service.worker import RewardWorker, RewardWorkerLoop
from hybridflow.types import (
    Completion,
    GroupRequest,
    Scored,
    ScoredCompletion,
    ScoreRequest,
    Unknown,
    Verdict,
)
from hybridflow.wire.codec import decode_to_worker, encode
from hybridflow.wire.completion_sender import CompletionSender
from hybridflow.wire.endpoint import Endpoint
from hybridflow.wire.messages import Bye, Ready, ToWorker, Work
from hybridflow.wire.reward_stream import RewardStream
from tests.builders import build_completion, build_prompt, build_request
from tests.unit.reward_service.thread_scorer import ThreadScorer

DEADLINE_S = 30.0


def request_group(slot: int, num_completions: int) -> GroupRequest:
    return build_request(build_prompt(f"p{slot}"), num_completions, group_id=f"t0-g{slot}")


def finish(slot: int, index: int, text: str = "The answer is yen.") -> Completion:
    return build_completion(request_group(slot, 1), index, text=text)


def give_one(request: ScoreRequest) -> Verdict:
    return Scored(value=1.0, rule="fake", extracted=request.text, why="always")


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
def running(
    stream: RewardStream, *workers: tuple[str, Callable[[ScoreRequest], Verdict], int]
) -> Iterator[Counter[str]]:
    """Workers as threads; after the block the stream is closed and the counter holds what each run() returned."""
    num_scored: Counter[str] = Counter()

    def run(worker_id: str, verify: Callable[[ScoreRequest], Verdict], credits: int) -> None:
        num_scored[worker_id] = RewardWorkerLoop(
            stream.endpoint_workers, worker_id, ThreadScorer(verify), credits
        ).run()

    threads = [threading.Thread(target=run, args=worker, daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(stream.workers) >= len(workers), "workers")
    yield num_scored
    stream.close()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "a worker did not stop"


class SilentWorker:
    """Takes work and never answers; vanishes on close()."""

    def __init__(self, stream: RewardStream, worker_id: str, credits: int) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.connect(stream.endpoint_workers.address)
        before = len(stream.workers)
        self.socket.send(encode(Ready(worker_id, credits)))
        wait_for(lambda: len(stream.workers) > before, worker_id)

    def take(self, number: int) -> list[str]:
        messages: list[ToWorker] = []
        while len(messages) < number:
            messages += [message for frame in self.socket.recv_multipart() for message in decode_to_worker(frame)]
        return [message.completion_id for message in messages if isinstance(message, Work)]

    def close(self) -> None:
        self.context.destroy(linger=0)


def test_two_thousand_completions_of_two_engines_through_two_workers(stream: RewardStream) -> None:
    num_groups, group_size = 250, 8
    stream.expect([request_group(slot, group_size) for slot in range(num_groups)])

    def engine(name: str, slots: range) -> None:
        with CompletionSender(stream.endpoint_completions, name) as sender:
            for slot in slots:
                for index in range(group_size):
                    sender.send(finish(slot, index, text=f"{slot} {index}"))

    with running(stream, ("w0", give_one, 4), ("w1", give_one, 4)) as num_scored:
        engines = [threading.Thread(target=engine, args=(f"e{n}", range(n, num_groups, 2))) for n in range(2)]
        for thread in engines:
            thread.start()
        scored = collect(stream, num_groups * group_size)
        assert stream.next(timeout_s=0.05) is None
        assert stream.outstanding() == set()
        assert stream.counters == {}
        for thread in engines:
            thread.join()
    ids = {item.completion.completion_id for item in scored}
    assert len(ids) == len(scored) == 2000
    for item in scored:  # each verdict is on its own completion
        assert isinstance(item.verdict, Scored) and item.verdict.extracted == item.completion.text
    assert num_scored.total() == 2000
    assert Counter(item.scored_by for item in scored) == num_scored


def test_a_slow_worker_holds_up_only_its_credits(stream: RewardStream) -> None:
    release = threading.Event()

    def stuck(request: ScoreRequest) -> Verdict:
        release.wait(DEADLINE_S)
        return give_one(request)

    stream.expect([request_group(slot, 8) for slot in range(10)])
    with running(stream, ("slow", stuck, 2), ("fast", give_one, 2)):
        with CompletionSender(stream.endpoint_completions, "e") as sender:
            for slot in range(10):
                for index in range(8):
                    sender.send(finish(slot, index))
        first = collect(stream, 78)
        assert {item.scored_by for item in first} == {"fast"}
        assert len(stream.outstanding()) == 2
        release.set()
        assert {item.scored_by for item in collect(stream, 2)} == {"slow"}


def test_items_of_a_worker_that_vanishes_go_to_the_other(stream: RewardStream) -> None:
    stream.expect([request_group(0, 8)])
    silent = SilentWorker(stream, "vanishes", credits=5)
    with CompletionSender(stream.endpoint_completions, "e") as sender:
        for index in range(8):
            sender.send(finish(0, index))
        held = silent.take(5)
        with running(stream, ("stays", give_one, 2)):
            assert {item.completion.completion_id for item in collect(stream, 3)}.isdisjoint(held)
            assert stream.outstanding() == set(held)
            silent.close()
            stream.worker_lost("vanishes")
            stream.worker_lost("vanishes")
            scored = collect(stream, 5)
            assert [item.completion.completion_id for item in scored] == held
            assert {item.scored_by for item in scored} == {"stays"}
            assert stream.counters == {"worker_lost": 1, "requeued": 5}
            assert len(stream.workers) == 1


def test_a_worker_whose_connection_is_gone_is_noticed_when_work_is_sent(stream: RewardStream) -> None:
    stream.expect([request_group(0, 1)])
    silent = SilentWorker(stream, "a-gone", credits=8)
    silent.close()
    time.sleep(0.2)  # for the broken connection to be seen
    with CompletionSender(stream.endpoint_completions, "e") as sender, running(stream, ("b-stays", give_one, 1)):
        sender.send(finish(0, 0))
        assert [item.scored_by for item in collect(stream, 1)] == ["b-stays"]
        assert stream.counters == {"worker_lost": 1, "requeued": 1}


def test_a_worker_that_comes_back_under_its_id_takes_over_its_items(stream: RewardStream) -> None:
    stream.expect([request_group(0, 2)])
    silent = SilentWorker(stream, "w", credits=2)
    with CompletionSender(stream.endpoint_completions, "e") as sender:
        for index in range(2):
            sender.send(finish(0, index))
        assert len(silent.take(2)) == 2
        with running(stream, ("w", give_one, 2)):
            assert {item.scored_by for item in collect(stream, 2)} == {"w"}
            assert len(stream.workers) == 1
    silent.close()


def test_a_worker_declared_lost_by_mistake_is_taken_back(stream: RewardStream) -> None:
    with running(stream, ("w", give_one, 2)):
        stream.worker_lost("w")
        assert len(stream.workers) == 0
        wait_for(lambda: len(stream.workers) == 1, "the next announcement")


def test_a_worker_that_leaves_hands_back_its_items(stream: RewardStream) -> None:
    stream.expect([request_group(0, 1)])
    silent = SilentWorker(stream, "leaves", credits=1)
    with CompletionSender(stream.endpoint_completions, "e") as sender:
        sender.send(finish(0, 0))
        silent.take(1)
        silent.socket.send(encode(Bye()))
        with running(stream, ("stays", give_one, 1)):
            assert [item.scored_by for item in collect(stream, 1)] == ["stays"]
    silent.close()


def test_a_worker_that_is_sent_malformed_bytes_leaves_with_a_protocol_error() -> None:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    raised: list[BaseException] = []

    def run() -> None:
        try:
            RewardWorkerLoop(Endpoint(f"tcp://127.0.0.1:{port}"), "w", ThreadScorer(give_one), 1).run()
        except ProtocolError as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    identity, _ = router.recv_multipart()
    router.send_multipart([identity, b"\xff noise"])
    thread.join(DEADLINE_S)
    assert len(raised) == 1
    assert router.recv_multipart()[1] == encode(Bye())
    context.destroy(linger=0)


def test_a_verifier_that_raises_gives_unknown_for_that_item_only(stream: RewardStream) -> None:
    def picky(request: ScoreRequest) -> Verdict:
        if request.text == "poison":
            raise ValueError("cannot read this")
        return give_one(request)

    stream.expect([request_group(0, 3)])
    with running(stream, ("w", picky, 2)) as num_scored:
        with CompletionSender(stream.endpoint_completions, "e") as sender:
            for index, text in enumerate(["good", "poison", "good"]):
                sender.send(finish(0, index, text))
        verdicts = {item.completion.index: item.verdict for item in collect(stream, 3)}
        assert verdicts[1] == Unknown(why="the verifier raised ValueError: cannot read this")
        assert isinstance(verdicts[0], Scored) and isinstance(verdicts[2], Scored)
    assert num_scored["w"] == 3


@pytest.mark.parametrize("credits", [0, 65])
def test_credits_out_of_bounds_are_refused_before_the_worker_starts(credits: int) -> None:
    with pytest.raises(RewardError, match="must be 1 to 64"):
        RewardWorkerLoop(Endpoint("tcp://127.0.0.1:9"), "w", ThreadScorer(give_one), credits)


def test_the_actor_shell_scores_by_rule(stream: RewardStream) -> None:
    actor = RewardWorker(stream.endpoint_workers, "r0", 2, Setup(build_verify=BUILD_RULES))
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(actor.run()), daemon=True)
    thread.start()
    stream.expect([request_group(0, 2)])
    with CompletionSender(stream.endpoint_completions, "e") as sender:
        sender.send(finish(0, 0))
        sender.send(finish(0, 1, "The answer is euro."))
    values = {item.completion.index: item.verdict for item in collect(stream, 2)}
    assert [v.value for _, v in sorted(values.items()) if isinstance(v, Scored)] == [1.0, 0.0]
    stream.close()
    thread.join(DEADLINE_S)
    assert results == [2]
    assert actor.ping() > 0
