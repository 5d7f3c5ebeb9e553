"""Starting Ray leaves the driver's answer to SIGTERM as it was; ending it waits for no process that stands still."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import ray

from hybridflow.cluster.session import killed_after, private_folder, start_session, stop_session
from hybridflow.errors import PlacementError


@pytest.mark.parametrize("fails", [False, True])
def test_the_drivers_own_sigterm_handler_stays(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Ray 2.60 installs one that ends the process with code 15 and a stack of addresses."""

    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if fails:
            raise RuntimeError("no port")

    def own(*_: object) -> None: ...

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.signal(signal.SIGTERM, own)
    try:
        if fails:
            with pytest.raises(PlacementError, match=r"cannot start Ray on this machine \(.* cores\): no port"):
                start_session(1)
        else:
            start_session(1)
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        stop_session()
        signal.signal(signal.SIGTERM, before)
    assert private_folder() is None


def test_a_process_that_stands_still_holds_up_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process.send_signal(signal.SIGSTOP)
    with killed_after(0.1, [process]):
        assert process.wait(30) == -signal.SIGKILL


def test_a_process_that_ends_in_time_is_not_killed() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    with killed_after(30, [process]):
        assert process.wait(30) == 0
