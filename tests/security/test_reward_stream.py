"""The reward stream of one machine against another user of it, and against a peer who may connect and lies."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
import zmq

from hybridflow.types import Completion, Scored, Unknown, Verdict
from hybridflow.wire.codec import decode_to_worker, encode
from hybridflow.wire.completion_sender import CompletionSender
from hybridflow.wire.messages import Bye, Hello, Message, Ready, ScoreReply, Work
from hybridflow.wire.reward_stream import RewardStream
from tests.builders import build_completion, build_prompt, build_request
from tests.security.other_user import needs_root, run_as_nobody

DEADLINE_S = 30.0
YES = Scored(value=1.0, rule="r", extracted="e", why="y")
REQUEST = build_request(build_prompt(ground_truth="gold answer"), 2)

IMPORTS = """
import os, socket, sys, zmq
from hybridflow.wire.codec import encode
from hybridflow.wire.messages import Ready
"""
LOOK = """
path = sys.argv[1].removeprefix("ipc://")
for what, act in (("list", lambda: os.listdir(os.path.dirname(path))),
                  ("connect", lambda: socket.socket(socket.AF_UNIX).connect(path))):
    try:
        act()
        print("may", what)
    except PermissionError:
        print("may not", what)
"""
WORK = """
worker = zmq.Context().socket(zmq.DEALER)
worker.setsockopt(zmq.LINGER, 0)
worker.connect(sys.argv[1])
worker.send(encode(Ready("stranger", 64)))
print("got work" if worker.poll(1000) else "got nothing")
"""


@pytest.fixture
def stream() -> Iterator[RewardStream]:
    stream = RewardStream(lease_s=600, max_workers=3)
    stream.expect([REQUEST])
    with CompletionSender(stream.endpoint_completions, "engine-0") as sender:
        for index in range(2):
            sender.send(completion(index))
    yield stream
    stream.close()


@needs_root
def test_another_user_cannot_reach_it_by_its_path(stream: RewardStream) -> None:
    code, output = run_as_nobody(IMPORTS, LOOK + WORK, stream.endpoint_workers.address)
    assert (code, output) == (0, "may not list\nmay not connect\ngot nothing\n")
    assert stream.workers == [] and stream.counters == {}


@needs_root
def test_another_user_without_the_key_gets_nothing_of_a_port() -> None:
    stream = RewardStream("127.0.0.1")
    code, output = run_as_nobody(IMPORTS, WORK, stream.endpoint_workers.address)
    assert (code, output) == (0, "got nothing\n")
    assert stream.workers == [] and stream.counters == {}
    stream.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9, -5.0])
def test_a_reward_beyond_its_range_is_never_handed_on(stream: RewardStream, value: float) -> None:
    with Peer(stream) as worker:
        worker.say(Ready("w", 1))
        (completion_id,) = worker.work()
        worker.say(ScoreReply(completion_id, msgspec.structs.replace(YES, value=value)))
        wait_for(lambda: stream.counters["verdict_out_of_range"] == 1, "the refusal")
        assert stream.next(0.0) is None and completion_id in stream.outstanding()
        worker.say(ScoreReply(completion_id, YES))
        scored = stream.next(DEADLINE_S)
    assert scored is not None and scored.verdict == YES


@pytest.mark.parametrize("verdict", [msgspec.structs.replace(YES, value=0.0), Unknown(why="I say so")])
def test_a_verdict_counts_from_nobody_but_the_holder_of_the_lease(stream: RewardStream, verdict: Verdict) -> None:
    with Peer(stream) as worker, Peer(stream) as liar, Peer(stream) as unannounced:
        worker.say(Ready("w", 2))
        held = worker.work()
        liar.say(Ready("liar", 1))
        for completion_id in held:
            liar.say(ScoreReply(completion_id, verdict))
            unannounced.say(ScoreReply(completion_id, verdict))
        unannounced.say(Bye())
        wait_for(lambda: stream.counters["verdict_without_lease"] == 2, "two refusals")
        wait_for(lambda: stream.counters["stranger"] == 3, "three more")
        assert stream.next(0.0) is None
        for completion_id in held:
            worker.say(ScoreReply(completion_id, YES))
        scored = [stream.next(DEADLINE_S) for _ in held]
    assert {item and item.scored_by for item in scored} == {"w"}


def test_twenty_thousand_invented_workers_and_engines_do_not_grow_the_driver(stream: RewardStream) -> None:
    with Peer(stream) as worker, Peer(stream, stream.endpoint_completions.address) as engine:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(20_000):
            worker.say(Ready(f"invented-{number}", 64, ["x" * 20] * 64))
            engine.say(Hello(f"invented-{number}", 1))
        wait_for(lambda: stream.counters["worker_refused"] >= 19_999, "refusals")
        wait_for(lambda: stream.counters["engine_refused"] > 15_000, "refusals")
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert len(stream.workers) == 1
    assert after - before < 50 * 1024, f"{(after - before) / 1024:.0f} MiB more"


class Peer:
    """A DEALER that says what it is told to."""

    def __init__(self, stream: RewardStream, address: str = "") -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(address or stream.endpoint_workers.address)

    def say(self, message: Message) -> None:
        self._socket.send(encode(message))

    def work(self) -> list[str]:
        """Ids of the work that comes next."""
        assert self._socket.poll(int(DEADLINE_S * 1000))
        return [it.completion_id for it in decode_to_worker(self._socket.recv()) if isinstance(it, Work)]

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)


def completion(index: int) -> Completion:
    return build_completion(REQUEST, index, text="t")


def wait_for(is_true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < end, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.005)
