"""Reward workers killed and stopped at random, and the broker's sockets closed, while completions are scored.

The schedule is seeded and tied to progress, not to time: after so many verdicts, that worker is killed or stopped. A
killed one is started again under its id; a stopped one goes on two events later and gives its late verdicts.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import psutil
import pytest

from hybridflow.types import Completion, GroupRequest, Scored, TokenColumns
from hybridflow.wire.completion_sender import CompletionSender
from hybridflow.wire.reward_stream import RewardStream
from tests.builders import build_completion, build_prompt, build_request
from tests.unit.wire.broken_sockets import break_sockets

pytestmark = [pytest.mark.stack_cpu, pytest.mark.faults]

PROGRAM = Path(__file__).with_name("reward_worker_program.py")
NUM_ITEMS = 5000
GROUP_SIZE = 8
NUM_WORKERS = 3
NUM_EVENTS = 20
WAIT_S = 60.0


class Workers:
    """Processes by worker id."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.processes: dict[str, psutil.Popen] = {}
        self.stopped: list[str] = []
        self.ever: list[psutil.Process] = []

    def start(self, worker_id: str) -> None:
        command = [sys.executable, str(PROGRAM), self._address, worker_id]
        self.processes[worker_id] = psutil.Popen(command, stdin=subprocess.DEVNULL)

    def children(self) -> list[psutil.Process]:
        return [child for process in self.processes.values() for child in process.children()]

    def kill(self, worker_id: str) -> None:
        process = self.processes[worker_id]
        self.ever += process.children()
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.start(worker_id)

    def stop(self, worker_id: str) -> None:
        self.processes[worker_id].send_signal(signal.SIGSTOP)
        self.stopped.append(worker_id)

    def go_on(self) -> None:
        self.processes[self.stopped.pop(0)].send_signal(signal.SIGCONT)


def request_group(slot: int) -> GroupRequest:
    return build_request(build_prompt(f"p{slot}"), GROUP_SIZE, group_id=f"t0-g{slot:04d}")


def finish(number: int) -> Completion:
    """Every third one is wrong."""
    slot, index = divmod(number, GROUP_SIZE)
    return build_completion(
        request_group(slot),
        index,
        tokens=TokenColumns(ids=[2, number], rollout_logprobs=[-1.0, -0.5]),
        text=f"The answer is {'euro' if number % 3 == 0 else 'yen'}.",
    )


def test_each_completion_is_scored_exactly_once_whatever_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(4)
    events = ["restart" if n == NUM_EVENTS // 2 else rng.choice(["kill", "stop"]) for n in range(NUM_EVENTS + 1)]
    due = sorted(rng.sample(range(100, NUM_ITEMS - 500), len(events)))
    seen: Counter[str] = Counter()
    with RewardStreamOf() as (stream, workers):
        stream.expect([request_group(slot) for slot in range(NUM_ITEMS // GROUP_SIZE)])
        sender = threading.Thread(target=send_all, args=(stream,))
        sender.start()
        for number in range(NUM_ITEMS):
            if due and number == due[0]:
                due.pop(0)
                event = events.pop(0)
                running = sorted(workers.processes.keys() - set(workers.stopped))
                if len(workers.stopped) == 2 or (event != "stop" and workers.stopped):
                    workers.go_on()
                if event == "restart":
                    break_sockets(monkeypatch)
                else:
                    getattr(workers, event)(rng.choice(running))
            item = stream.next(timeout_s=WAIT_S)
            assert item is not None, f"{len(stream.outstanding())} left; {stream.workers}; {stream.counters}"
            completion = item.completion
            seen[completion.completion_id] += 1
            assert isinstance(item.verdict, Scored), item.verdict
            assert completion == finish(completion.token_ids[1])
            assert item.verdict.value == float(completion.token_ids[1] % 3 != 0)
        assert not events
        while workers.stopped:
            workers.go_on()
        assert stream.next(timeout_s=1.0) is None, "a late verdict was handed out"
        sender.join(WAIT_S)
        assert stream.outstanding() == set()
        assert stream.counters["stream_restarted"] == 1
        # By its successor where that one starts within the lease, by its silence where the machine is slow.
        assert stream.counters["worker_lost"] + stream.counters["worker_silent"] >= 1
        scoring = [*workers.ever, *workers.children()]
    assert len(seen) == seen.total() == NUM_ITEMS
    _, alive = psutil.wait_procs(scoring, timeout=WAIT_S)
    assert alive == [], "a scoring process outlived its worker"


def send_all(stream: RewardStream) -> None:
    with CompletionSender(stream.endpoint_completions, "engine-0", flush_timeout_s=WAIT_S) as sender:
        for number in range(NUM_ITEMS):
            sender.send(finish(number))


class RewardStreamOf:
    """A stream with workers; ends both."""

    def __enter__(self) -> tuple[RewardStream, Workers]:
        self._stream = RewardStream(lease_s=3.0, max_pending_bytes=2**20)
        self._workers = Workers(self._stream.endpoint_workers.address)
        for index in range(NUM_WORKERS):
            self._workers.start(f"w{index}")
        return self._stream, self._workers

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        for process in self._workers.processes.values():
            process.kill()
            process.wait()
