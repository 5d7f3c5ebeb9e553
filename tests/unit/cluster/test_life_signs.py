"""A part of a run that is gone is told at once, and the one that others ended with."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from hybridflow.cluster import life_signs
from hybridflow.cluster.life_signs import RayLife, WorkerLife, lives
from hybridflow.cluster.workers import Worker
from hybridflow.errors import PlacementError, TrainerError
from hybridflow.observability.span import LifeSign

GCS, RAYLET = "gcs_server", "raylet"
AGENT = "ray/_private/runtime_env/agent/main.py"
ENDS_WITH_ITS_INPUT = "import sys; sys.stdin.read()"
WITH_AGENT = f"""
import subprocess, sys
agent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "{AGENT}"], stdout=subprocess.DEVNULL)
print(agent.pid, flush=True)
{ENDS_WITH_ITS_INPUT}
"""
UPDATE = LifeSign(pid=11, span="update", number=3, seconds=0.1)


class Answers:
    """An actor whose `life` gives these, one a look; and the part of Ray that hands them out."""

    def __init__(self, *outcomes: Any) -> None:
        self._outcomes = iter(outcomes)
        self.life = self

    def remote(self) -> Any:
        return next(self._outcomes)

    def wait(self, refs: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return refs, []

    def get(self, ref: Any) -> Any:
        if isinstance(ref, Exception):
            raise ref
        return ref


def watched(monkeypatch: pytest.MonkeyPatch, *outcomes: Any) -> WorkerLife:
    answers = Answers(*outcomes)
    monkeypatch.setattr(life_signs, "ray", answers)
    return WorkerLife([Worker("train worker 0", answers, TrainerError, pid=11)])


def test_a_worker_that_died_is_told_before_anybody_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    life = watched(monkeypatch, UPDATE, ActorDiedError(), None)
    assert [life.look(), life.look()] == [False, True]
    with pytest.raises(TrainerError, match=r"train worker 0 \(process 11\) died after it began 'update': .*--resume"):
        life.look()


def test_a_worker_that_cannot_be_reached_for_a_moment_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = ActorUnavailableError("the connection broke", None)
    life = watched(monkeypatch, lost, UPDATE, None)
    assert [life.look(), life.look(), life.look()] == [False, False, True]


@pytest.fixture
def started() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """A control service, and a worker pool with an agent; the two end when their input does."""
    programs = {GCS: ENDS_WITH_ITS_INPUT, RAYLET: WITH_AGENT}
    processes = {
        name: subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name, program in programs.items()
    }
    yield processes
    for process in processes.values():
        process.communicate()


@pytest.mark.parametrize(
    ("killed", "ended", "culprit"),
    [
        (RAYLET, ["agent"], "worker pool (raylet)"),
        ("agent", [RAYLET], "agent 0 of the worker pool"),
        (GCS, [RAYLET, "agent"], "control service (GCS)"),
    ],
)
def test_the_process_that_others_ended_with_is_blamed(
    started: dict[str, subprocess.Popen[bytes]], killed: str, ended: list[str], culprit: str
) -> None:
    output = started[RAYLET].stdout
    assert output is not None
    agent = psutil.Process(int(output.readline()))
    life = RayLife(started)
    assert life.look() is False
    for name in (killed, *ended):
        if name == "agent":
            agent.kill()
            while lives(agent):
                time.sleep(0.01)
        else:
            started[name].send_signal(signal.SIGKILL if name == killed else signal.SIGCONT)
            started[name].communicate()
    with pytest.raises(PlacementError, match=rf"Ray's {re.escape(culprit)} \(process \d+\) has ended"):
        life.look()
