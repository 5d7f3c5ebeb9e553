"""The watchdog ends the main thread's wait, whatever it waits for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hybridflow.cluster import watchdog
from hybridflow.cluster.life_signs import agents_of, lives
from hybridflow.cluster.watchdog import WAKE_SIGNAL, Source, Watchdog
from hybridflow.errors import PlacementError, StalledError, TrainerError
from hybridflow.observability.span import enter, life_sign, stack_of_threads


class Part:
    """A source in the test's hand."""

    def __init__(self) -> None:
        self.moves = False
        self.gone = False

    def look(self) -> bool:
        if self.gone:
            raise PlacementError("Ray's control service has ended")
        return self.moves

    def report(self) -> list[str]:
        return ["train worker 1 (process 4711) in 'update' for 2 s\nthread MainThread\n  sleep"]


class Opened:
    """A watchdog that was started, and what it said."""

    def __init__(self, part: Source, directory: Path) -> None:
        self.notes: list[str] = []
        self.stacks = directory / "stacks.log"
        self.watchdog = Watchdog({"train": 1.0}, self.notes.append, self.stacks)
        self.watchdog.watch(part)
        self.watchdog.start()


@pytest.fixture
def part() -> Part:
    return Part()


@pytest.fixture
def opened(part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    monkeypatch.setattr(watchdog, "END_AFTER_S", 2.0)
    before = signal.getsignal(WAKE_SIGNAL)
    opened = Opened(part, tmp_path)
    yield opened
    opened.watchdog.close()
    assert signal.getsignal(WAKE_SIGNAL) == before


def test_a_stall_is_reported_and_then_raised_in_the_main_thread(opened: Opened) -> None:
    watchdog = opened.watchdog
    with (
        pytest.raises(StalledError, match=r"no sign of life in TRAIN for \d+ s") as caught,
        watchdog.raising(),
        watchdog.phase("train"),
    ):
        time.sleep(60)
    (note,) = opened.notes
    assert "train worker 1 (process 4711) in 'update'" in note
    assert "cluster.stall.train_s = 1" in str(caught.value)
    assert "--resume" in str(caught.value)
    assert "thread MainThread\n  sleep" in opened.stacks.read_text()


def test_what_moves_is_left_alone(opened: Opened, part: Part) -> None:
    part.moves = True
    with opened.watchdog.phase("train"):
        time.sleep(4)
    assert opened.notes == []


def test_a_part_that_is_gone_ends_the_run_at_once_in_any_phase(opened: Opened, part: Part) -> None:
    part.gone = True
    with pytest.raises(PlacementError, match="control service has ended"), opened.watchdog.raising():
        time.sleep(60)


def test_a_worker_that_died_of_what_is_gone_is_not_the_culprit(opened: Opened, part: Part) -> None:
    with pytest.raises(TrainerError, match="train worker 1 died"), opened.watchdog.raising():
        raise TrainerError("train worker 1 died")
    part.gone = True
    with pytest.raises(PlacementError, match="control service has ended"), opened.watchdog.raising():
        raise TrainerError("train worker 1 died")


def test_an_error_of_another_room_is_taken_for_what_it_died_of(opened: Opened, part: Part) -> None:
    """An error in Ray's words comes before the watchdog has seen that its process is gone."""
    with pytest.raises(PlacementError, match="control service has ended"), opened.watchdog.raising():
        part.gone = True
        raise OSError("broken pipe")


def test_an_error_of_its_own_stays(opened: Opened) -> None:
    with pytest.raises(OSError, match="broken pipe"), opened.watchdog.raising():
        raise OSError("broken pipe")


@pytest.mark.parametrize("delay_s", [0.9, 1.0, 1.1])
def test_an_error_beside_the_watchdogs_own_ends_the_watch(opened: Opened, part: Part, delay_s: float) -> None:
    part.gone = True
    with pytest.raises(PlacementError, match="control service has ended"), opened.watchdog.raising():
        time.sleep(delay_s)
        raise OSError("broken pipe")
    time.sleep(1.5)  # clears up, and is not interrupted


def test_the_same_error_passes_through_nested_waits(opened: Opened, part: Part) -> None:
    part.gone = True
    with (
        pytest.raises(PlacementError, match="control service has ended") as caught,
        opened.watchdog.raising(),
        opened.watchdog.raising(),
    ):
        time.sleep(60)
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)


STUCK = """
import ctypes, sys
from pathlib import Path
from hybridflow.cluster import watchdog
from tests.unit.cluster.test_watchdog import Part
watchdog.BEAT_S = watchdog.END_AFTER_S = watchdog.LET_GO_S = 0.2
watched = watchdog.Watchdog({"train": 0.2}, print, Path(sys.argv[1]))
watched.watch(Part())
watched.start()
def stand_still():  # the second lock is waited for for ever, and no signal ends that
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
with watched.raising(), watched.phase("train"):
    stand_still()
"""


def test_a_main_thread_that_no_signal_reaches_is_ended_with_its_process(tmp_path: Path) -> None:
    stacks = tmp_path / "stacks.log"
    ended = subprocess.run(
        [sys.executable, "-c", STUCK, str(stacks)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    kind, told = ended.stderr.splitlines()
    assert kind == "error: StalledError"
    assert "train worker 1 (process 4711) in 'update'" in told and "--resume" in told and "stacks.log" in told
    assert "in stand_still" in stacks.read_text().partition("\n\ndriver (process ")[2]


def test_agents_of_a_worker_pool_are_found_and_their_death_is_seen() -> None:
    sleep = "import time; time.sleep(600)"
    agent = subprocess.Popen([sys.executable, "-c", sleep, "ray/_private/runtime_env/agent/main.py"])
    other = subprocess.Popen([sys.executable, "-c", sleep, "ray/worker"])
    try:
        (found,) = [process for process in agents_of(psutil.Process()) if process.pid in (agent.pid, other.pid)]
        assert found.pid == agent.pid and lives(found)
        agent.kill()
        while found.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert not lives(found)
        agent.wait()
        assert not lives(found)
    finally:
        for process in (agent, other):
            process.kill()
            process.wait()


def test_signs_of_life_from_another_thread(opened: Opened) -> None:
    done = threading.Event()

    def live() -> None:
        while not done.wait(0.2):
            opened.watchdog.moved()

    thread = threading.Thread(target=live)
    thread.start()
    with opened.watchdog.phase("train"):
        time.sleep(4)
    done.set()
    thread.join()
    assert opened.notes == []


def test_a_process_says_what_it_does_and_where_its_threads_are() -> None:
    before = life_sign(os.getpid())
    enter("update, mini-batch 1 of 2")
    sign = life_sign(os.getpid())
    assert (sign.span, sign.number, sign.pid) == ("update, mini-batch 1 of 2", before.number + 1, os.getpid())
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="waits")
    thread.start()
    stack = stack_of_threads()
    done.set()
    thread.join()
    assert "thread waits\n" in stack and "in wait" in stack.partition("thread waits")[2]
