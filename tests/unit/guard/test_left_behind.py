"""Remains of a killed run are found by its mark, its folder and its time, and nobody else's is touched."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hybridflow.guard.left_behind import SHARED_MEMORY, clear, remove_shared_memory
from hybridflow.private_folder import MARK
from hybridflow.recording.run_folder.driver_lock import DriverLock

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def start(temporary: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(SLEEPER, env=os.environ | {MARK: str(temporary)}, start_new_session=True)


def test_processes_of_the_run_end_and_those_of_another_go_on(tmp_path: Path) -> None:
    own, other = tmp_path / "hyfl-own", tmp_path / "hyfl-other"
    (own / "0").mkdir(parents=True)
    marked, foreign = start(own), start(other)
    try:
        clear(own, time.time())
        assert marked.wait(timeout=5) == -9
        assert foreign.poll() is None
        assert not own.exists()
    finally:
        foreign.kill()
        foreign.wait()


def test_memory_goes_that_is_of_a_library_of_the_time_of_the_run_and_nobodys() -> None:
    names = [f"{prefix}{os.getpid()}" for prefix in ("psm_left", "psm_used", "psm_early", "unknown_")]
    left, used, early, unknown = paths = [SHARED_MEMORY / name for name in names]
    try:
        early.touch()
        os.utime(early)
        since = early.stat().st_ctime + 5
        time.sleep(0.01)
        for path in (left, used, unknown):
            path.touch()
        with used.open():
            assert left not in remove_shared_memory(since)
            removed = remove_shared_memory(time.time() - 0.5)
        assert left in removed and used not in removed and unknown not in removed
        assert used.exists() and unknown.exists()
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def test_a_semaphore_of_a_process_that_lives_stays() -> None:
    lock = multiprocessing.get_context("spawn").Lock()
    name = f"sem.{lock._semlock.name.lstrip('/')}"  # pyright: ignore[reportAttributeAccessIssue]
    assert SHARED_MEMORY / name not in remove_shared_memory(time.time() - 0.5)
    assert (SHARED_MEMORY / name).exists()


@pytest.mark.parametrize(("host", "is_cleared"), [(socket.gethostname(), True), ("elsewhere", False)])
def test_who_takes_over_the_lock_of_a_killed_driver_clears_what_it_left(
    tmp_path: Path, host: str, is_cleared: bool
) -> None:
    temporary = tmp_path / "hyfl-killed"
    temporary.mkdir()
    marked = start(temporary)
    lock = DriverLock(tmp_path / "run")
    lock.path.write_text(json.dumps({"pid": 1, "host": host, "temporary": str(temporary), "since": time.time()}))
    os.utime(lock.path, (1, 1))
    try:
        with lock:
            assert temporary.exists() != is_cleared
            assert (marked.poll() is None) != is_cleared or marked.wait(timeout=5) == -9
    finally:
        marked.kill()
        marked.wait()
