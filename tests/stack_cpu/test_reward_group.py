"""Reward workers as Ray actors: one that is killed while it holds work is replaced, and every completion is scored."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from hybridflow.cluster.session import Slots, start_session, stop_session
from hybridflow.config.reward_sections import RewardSection
from hybridflow.errors import RewardError
from hybridflow.observability.reporter import Notes
from hybridflow.reward_service.sandbox.protocol import Setup, rules_setup
from hybridflow.reward_service.worker_group import RewardGroup
from hybridflow.types import Completion, Scored
from hybridflow.wire.completion_sender import CompletionSender
from hybridflow.wire.messages import build_completion_id
from hybridflow.wire.reward_stream import RewardStream
from tests.builders import build_completion, build_request

pytestmark = [pytest.mark.stack_cpu, pytest.mark.faults]

NUM_ITEMS = 400
REQUEST = build_request(num_completions=NUM_ITEMS)
SECTION = RewardSection(num_workers=2)


@pytest.fixture(scope="module")
def slots() -> Iterator[Slots]:
    start_session(1)
    yield Slots(1)
    stop_session()


def completion(index: int) -> Completion:
    return build_completion(REQUEST, index)


def send_all(stream: RewardStream) -> None:
    with CompletionSender(stream.endpoint_completions, "e") as sender:
        for index in range(NUM_ITEMS):
            sender.send(completion(index))


def test_a_killed_worker_is_replaced_and_nothing_is_lost_or_scored_twice(slots: Slots, tmp_path: Path) -> None:
    notes: list[str] = []
    stream = RewardStream(lease_s=60)
    group = RewardGroup(SECTION, rules_setup(SECTION), stream, slots, tmp_path, Notes(notes.append))
    group.wait_ready()
    victim = group.pids["reward-1"]
    stream.expect([REQUEST])
    os.kill(victim, signal.SIGSTOP)  # so that it holds work, for certain, when it dies
    sender = threading.Thread(target=send_all, args=(stream,))
    sender.start()
    seen = [take(stream) for _ in range(NUM_ITEMS // 2)]
    os.kill(victim, signal.SIGKILL)
    end = time.monotonic() + 60
    while not notes:
        assert time.monotonic() < end, "the death was not noticed"
        group.check()
        time.sleep(0.05)
    seen += [take(stream) for _ in range(NUM_ITEMS - len(seen))]
    group.wait_ready()
    sender.join()
    assert sorted(seen) == sorted(build_completion_id("g", index) for index in range(NUM_ITEMS))
    assert stream.outstanding() == set() and stream.next(0.0) is None
    said = f"reward-1 (process {victim}) died: killed, or out of memory; its items go to the others"
    assert notes == [f"{said}, and it is started again"]
    assert stream.counters["worker_lost"] == 1 and stream.counters["requeued"] == SECTION.credits
    assert group.pids["reward-1"] not in (0, victim)
    stream.close()
    for actor in group.actors:
        ray.kill(actor)


def take(stream: RewardStream) -> str:
    item = stream.next(timeout_s=60)
    assert item is not None and isinstance(item.verdict, Scored), f"{item}; {stream.counters}"
    return item.completion.completion_id


def test_verifiers_that_cannot_be_loaded_end_the_run_with_their_error(slots: Slots, tmp_path: Path) -> None:
    stream = RewardStream()
    section = RewardSection(num_workers=1)
    group = RewardGroup(section, Setup(build_verify="nowhere:build"), stream, slots, tmp_path, Notes(print))
    with pytest.raises(RewardError, match="verifier nowhere:build cannot be loaded: ModuleNotFoundError"):
        group.wait_ready()
    stream.close()
