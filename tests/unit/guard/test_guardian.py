"""Whichever process of a command is killed: all end, and nothing is left in /tmp and /dev/shm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from hybridflow.guard.left_behind import SHARED_MEMORY
from hybridflow.private_folder import MARK

PROGRAM = """
import json, os, signal, subprocess, sys, tempfile, time
from hybridflow.guard.guardian import split_off
from hybridflow.private_folder import PrivateFolder

first = os.getpid()
split_off()
inner = PrivateFolder()
sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
away = "import subprocess, sys; subprocess.Popen({0!r}, env={{}}, start_new_session=True)".format(sleeper)
pids = [subprocess.Popen(sleeper, **quiet).pid, subprocess.Popen([sys.executable, "-c", away], **quiet).pid]
memory = f"/dev/shm/sem.mp-guard{os.getpid()}"
open(memory, "w").close()
tempfile.mkdtemp()
def on_term(*_):
    sys.exit(7)
signal.signal(signal.SIGTERM, on_term)
signal.signal(signal.SIGUSR1, lambda *_: os._exit(1))  # as a library does
tell = dict(first=first, guardian=os.getppid(), driver=os.getpid(), pids=pids, memory=memory, inner=str(inner.path))
print(json.dumps(tell | dict(temporary=os.environ["TMPDIR"])), flush=True)
time.sleep(600)
"""


@contextmanager
def guarded(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    try:
        yield process, told
    finally:
        for child in psutil.process_iter():
            if child.pid in (told["first"], told["guardian"], told["driver"]):
                child.kill()


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """TMPDIR of few letters."""
    path = Path(f"/tmp/g{os.getpid()}")
    path.mkdir()
    yield path
    path.rmdir()


def everything_below(told: dict[str, Any]) -> list[psutil.Process]:
    found = [psutil.Process(told[name]) for name in ("first", "guardian", "driver")]
    deadline = time.monotonic() + 20
    while len(below := psutil.Process(told["guardian"]).children(recursive=True)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)  # the one without an environment, in a session of its own, starts last
    return found + below


@pytest.mark.parametrize(
    ("victim", "code", "named"),
    [
        ("driver", 1, "error: the driver of the run (process {driver}) was ended by SIGKILL"),
        ("guardian", 1, "error: the guardian of the run (process {guardian}) was ended by SIGKILL"),
        ("first", -9, "error: the first process of the run (process {first}) was ended by SIGKILL"),
        ("group", -9, "was ended by SIGKILL"),
    ],
)
def test_whichever_is_killed_nothing_is_left(short: Path, victim: str, code: int, named: str) -> None:
    with guarded(short) as (process, told):
        assert told["inner"] == f"{told['temporary']}/0"
        processes = everything_below(told)
        if victim == "group":
            os.killpg(told["first"], signal.SIGKILL)
        else:
            os.kill(told[victim], signal.SIGKILL)
        _, said = process.communicate(timeout=20)
        assert process.returncode == code, said
        assert named.format(**told) in said
        _, alive = psutil.wait_procs(processes, timeout=5)
        assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
        assert list(short.iterdir()) == []
        assert not (SHARED_MEMORY / Path(told["memory"]).name).exists()


def test_a_signal_reaches_the_driver_and_its_exit_code_the_user(short: Path) -> None:
    with guarded(short) as (process, told):
        os.kill(told["first"], signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        assert (process.returncode, said) == (7, "")
        assert not psutil.pid_exists(told["driver"])
        assert list(short.iterdir()) == []


def test_a_driver_that_a_library_ends_without_a_word_is_named(short: Path) -> None:
    with guarded(short) as (process, told):
        os.kill(told["driver"], signal.SIGUSR1)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 1
        assert f"driver of the run (process {told['driver']}) was ended, with exit code 1, by a library" in said
        assert said.count("error:") == 1


def test_a_command_ends_what_an_earlier_one_left_whose_guardians_were_killed(short: Path) -> None:
    abandoned = short / "hyfl-abandond"
    abandoned.mkdir(mode=0o700)
    os.utime(abandoned, (1, 1))
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    left = subprocess.Popen(sleeper, env=os.environ | {MARK: str(abandoned)}, start_new_session=True)
    with guarded(short) as (process, told):
        assert left.wait(timeout=5) == -signal.SIGKILL
        assert not abandoned.exists()
        os.kill(told["driver"], signal.SIGKILL)
        process.wait(timeout=20)
