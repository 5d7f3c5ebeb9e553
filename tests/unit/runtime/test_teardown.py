"""The end of what a command started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress

import psutil
import pytest
import ray
from ray.exceptions import RayError

from hybridflow.runtime import teardown
from hybridflow.runtime.teardown import tear_down


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The list of what was done, in order."""
    done: list[str] = []

    def kill(actor: str) -> None:
        done.append(f"kill {actor}")
        os.kill(os.getpid(), signal.SIGTERM)  # somebody loses patience
        os.kill(os.getpid(), signal.SIGINT)
        if actor == "gone":
            raise RayError("it has ended already")

    def end_processes(pids: Sequence[int], name_part: str, grace_s: float) -> None:
        done.append(f"end {name_part} {pids}")

    monkeypatch.setattr(ray, "kill", kill)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(teardown, "stop_session", lambda: done.append("stop Ray"))
    monkeypatch.setattr(teardown, "end_processes", end_processes)
    monkeypatch.setattr(teardown, "forget_workers", lambda: done.append("forget"))
    monkeypatch.setattr(teardown, "removed_with_processes", nullcontext)
    return done


ENDED = ["kill gone", "kill b", "stop Ray", "end sglang [7]", "end RolloutWorker [7]", "forget"]


def test_no_signal_and_no_dead_actor_cuts_it_short(events: list[str]) -> None:
    tear_down(["gone", "b"], [7], first=[lambda: events.append("watchdog"), lambda: events.append("stream")])
    assert events == ["watchdog", "stream", *ENDED]


def test_what_cannot_be_closed_leaves_no_process_behind(events: list[str]) -> None:
    def fail() -> None:
        raise OSError("the socket is broken")

    with pytest.raises(OSError, match="the socket is broken"):
        tear_down(["gone", "b"], [7], first=[fail, lambda: events.append("stream")])
    assert events == ["stream", *ENDED]


def test_a_server_that_ignores_the_signal_is_killed_with_its_children() -> None:
    """It starts a child, and neither ends by SIGTERM."""
    deaf = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    start = "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=sys.stdout); "
    rest = "print(child.pid, flush=True); time.sleep(60)"
    told = deaf + "print('deaf', flush=True); time.sleep(60)"
    server = subprocess.Popen([sys.executable, "-c", deaf + start + rest, told], stdout=subprocess.PIPE)
    assert server.stdout is not None
    lines = {server.stdout.readline().strip(), server.stdout.readline().strip()}
    (child,) = (int(line) for line in lines - {b"deaf"})
    teardown.end_server(server, timeout_s=0.2)
    assert server.returncode == -signal.SIGKILL
    with suppress(psutil.NoSuchProcess):
        psutil.Process(child).wait(5)
    assert not psutil.pid_exists(child)
    server.stdout.close()
