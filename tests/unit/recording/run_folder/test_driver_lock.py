"""One driver per run folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hybridflow.errors import ConfigError
from hybridflow.recording.run_folder import driver_lock
from hybridflow.recording.run_folder.driver_lock import DriverLock

HOLDER = """
import sys, time
from pathlib import Path
from hybridflow.recording.run_folder.driver_lock import DriverLock
with DriverLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "quickstart"


def test_a_second_driver_is_refused_and_told_who_holds_the_run_until_that_one_dies(run: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, run], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        for take in (DriverLock(run).check, DriverLock(run).__enter__):
            with pytest.raises(ConfigError) as caught:
                take()
            assert f"process {holder.pid} on {os.uname().nodename}" in str(caught.value)
            assert f"`kill {holder.pid}`" in str(caught.value)
            assert "--set run.name=" in str(caught.value)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with DriverLock(run) as lock:  # what the killed one left is stale
        assert json.loads(lock.path.read_text())["pid"] == os.getpid()
        assert lock.path.stat().st_mode & 0o777 == 0o600
    assert not lock.path.exists()


def test_two_in_one_process_exclude_each_other(run: Path) -> None:
    with DriverLock(run), pytest.raises(ConfigError, match=f"process {os.getpid()}"), DriverLock(run):
        pass
    with DriverLock(run):
        pass


@pytest.mark.parametrize("content", ["", "no json", "[]", '{"pid": 1, "host": null}', '{"pid": %d, "host": "%s"}'])
def test_what_a_lost_driver_of_this_machine_left_is_stale(run: Path, content: str) -> None:
    lock = DriverLock(run)
    lock.path.write_text(content.replace("%d", str(os.getpid())).replace("%s", os.uname().nodename))
    with lock:
        assert json.loads(lock.path.read_text())["pid"] == os.getpid()


def test_of_another_machine_only_a_silent_one_is_stale(run: Path) -> None:
    lock = DriverLock(run)
    lock.path.write_text('{"pid": 7, "host": "elsewhere"}')
    with pytest.raises(ConfigError, match="process 7 on elsewhere") as caught:
        lock.check()
    assert f"delete {lock.path}" in str(caught.value)
    long_ago = time.time() - driver_lock.SILENT_S - 1
    os.utime(lock.path, (long_ago, long_ago))
    with lock:
        pass


def test_the_holder_shows_that_it_lives(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_lock, "BEAT_S", 0.01)
    with DriverLock(run) as lock:
        os.utime(lock.path, (0, 0))
        deadline = time.monotonic() + 60
        while lock.path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock.path.stat().st_mtime > 0


def test_looking_leaves_no_trace(run: Path) -> None:
    DriverLock(run / "none" / "deeper").check()
    DriverLock(run).check()
    assert list(run.parent.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot lock the run folder"), DriverLock(tmp_path / "file" / "run"):
        pass
